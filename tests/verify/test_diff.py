"""What differs between two checkpoints of any formats is found, measured and said."""

from __future__ import annotations

import itertools
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckptconv import convert
from ckptconv.api.diff import diff
from ckptconv.engine.events import Progress
from ckptconv.errors import PlanError, UsageError
from ckptconv.verify.outcome import Diff, TensorDiff
from megatron_cases import Case
from running import CASES, DEMO, case_run, fails, succeeds
from running import ckptconv as run_command

LLAMA = Case("llama.tar.xz", "llama/torch_tp2pp1_te_te1x")
VIRTUAL = Case("llama.tar.xz", "llama/torch_tp1pp2vpp2_te")
OLD = Case("gpt2.tar.xz", "gpt2/torch_tp2pp2_oldv1")


def model(path: Path, **tensors: torch.Tensor) -> Path:
    """Write tensors to a file."""
    save_file(tensors, path)
    return path


def one(found: Diff, name: str = "w") -> TensorDiff:
    """Return what was found of a tensor."""
    return next(t for t in found.tensors if t.name == name)


def pair(tmp_path: Path, a: torch.Tensor, b: torch.Tensor, **options: Any) -> TensorDiff:
    """Compare two tensors."""
    return one(
        diff(model(tmp_path / "a.safetensors", w=a), model(tmp_path / "b.safetensors", w=b), **options)
    )


def test_all_that_can_differ(tmp_path: Path) -> None:
    a = model(
        tmp_path / "a.safetensors",
        same=torch.arange(6.0),
        gone=torch.ones(2),
        shape=torch.ones(2, 3),
        much=torch.ones(4, 5),
        little=torch.ones(4, 5),
        type=torch.ones(3),
    )
    much, little = torch.ones(4, 5), torch.ones(4, 5)
    much[2, 3] = 3.0
    little[3, 4] += 2**-20
    b = model(
        tmp_path / "b.safetensors",
        same=torch.arange(6.0),
        new=torch.ones(2),
        shape=torch.ones(3, 2),
        much=much,
        little=little,
        type=torch.ones(3, dtype=torch.bfloat16),
    )
    found = diff(a, b)
    assert not found.ok
    assert [*found.only_a] == ["gone"] and [*found.only_b] == ["new"]
    assert [t.name for t in found.tensors] == ["shape", "much", "little", "same", "type"]
    assert [t.verdict for t in found.tensors] == ["shape", "differs", "differs", "equal", "equal"]
    most = one(found, "much")
    assert (most.count, most.largest, most.index, most.values) == (1, 2.0, (2, 3), (1.0, 3.0))
    assert most.mean == pytest.approx(2 / 20) and most.relative == pytest.approx(2 / math.sqrt(19 + 9))
    assert one(found, "little").index == (3, 4) and one(found, "little").largest == 2**-20
    assert one(found, "shape").shape_b == (3, 2)
    assert any("float32 in A, bfloat16 in B" in text for _, text in found.notes)


def test_tensors_that_differ_alike_keep_their_order(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.ones(3) for i in range(6)}
    a, b = model(tmp_path / "a.safetensors", **tensors), model(tmp_path / "b.safetensors", **tensors)
    rest, told = threading.Event(), itertools.count(1)

    def listen(event: object) -> None:
        """Hold the first tensor back until the others are compared."""
        if isinstance(event, Progress):
            number = next(told)
            if number == 1:
                rest.wait(10)
            elif number == len(tensors):
                rest.set()

    found = diff(a, b, workers=2, listen=listen)
    assert [t.name for t in found.tensors] == list(tensors)


def test_another_type_alone_is_said_and_is_no_difference(tmp_path: Path) -> None:
    values = torch.randn(7, 9).bfloat16()
    found = pair(tmp_path, values, values.float())
    assert (found.verdict, found.count, found.dtype, found.dtype_b) == ("equal", 0, "bfloat16", "float32")


numbers = st.lists(
    st.one_of(
        st.floats(width=32, allow_nan=False),
        st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf]),
    ),
    min_size=1,
    max_size=40,
)


@given(numbers, numbers, st.sampled_from([0.0, 1e-3, 10.0]), st.sampled_from([0.0, 1e-3, 0.5]))
def test_figures_are_those_numpy_computes(
    tmp_path_factory: pytest.TempPathFactory, a: list[float], b: list[float], atol: float, rtol: float
) -> None:
    size = min(len(a), len(b))
    left, right = (torch.tensor(v[:size], dtype=torch.float32) for v in (a, b))
    found = pair(tmp_path_factory.mktemp("pair"), left, right, atol=atol, rtol=rtol)
    x, y = left.double().numpy(), right.double().numpy()
    with np.errstate(all="ignore"):
        differ = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        delta = np.abs(x - y)
    finite = differ & np.isfinite(delta)
    assert found.count == differ.sum()
    assert found.unbounded == (differ & ~np.isfinite(delta)).sum()
    close = np.isclose(x, y, rtol=rtol, atol=atol, equal_nan=True)
    assert found.beyond == (~close).sum()
    assert found.nans == (np.isnan(x).sum(), np.isnan(y).sum())
    assert found.largest == (delta[finite].max() if finite.any() else 0.0)
    assert (found.index is None) == (not differ.any())
    if finite.any():
        assert found.index is not None and delta[found.index] == found.largest
        norm = math.sqrt(math.fsum(v * v for v in y if np.isfinite(v)))
        wanted = math.sqrt(math.fsum(d * d for d in delta[finite]))
        assert found.relative == (pytest.approx(wanted / norm) if norm else math.inf)


def test_nan_equals_nan_and_is_said(tmp_path: Path) -> None:
    a, b = torch.ones(5), torch.ones(5)
    a[1] = b[1] = b[4] = math.nan
    found = diff(model(tmp_path / "a.safetensors", w=a), model(tmp_path / "b.safetensors", w=b))
    assert (one(found).count, one(found).unbounded, one(found).index) == (1, 1, (4,))
    assert any("1 values of A and 2 of B are NaN" in text for _, text in found.notes)


def test_signed_zeros_are_equal_but_their_bits_are_not(tmp_path: Path) -> None:
    found = pair(tmp_path, torch.zeros(4), -torch.zeros(4))
    assert (found.verdict, found.count, found.bits) == ("equal", 0, 4)


def test_integers_beyond_float64_are_told_apart(tmp_path: Path) -> None:
    big = torch.tensor([2**60, 2**60 + 1])
    found = pair(tmp_path, big, big + torch.tensor([0, 1]))
    assert (found.count, found.beyond, found.index) == (1, 1, (1,))
    assert found.values == (2**60 + 1, 2**60 + 2)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_tensors_of_few_elements(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert pair(tmp_path, torch.ones(shape), torch.ones(shape)).verdict == "equal"
    found = pair(tmp_path, torch.ones(shape), torch.zeros(shape))
    assert found.count == math.prod(shape)
    if found.count:
        assert found.index == (0,) * len(shape) and found.relative == math.inf


def test_small_tiles_give_the_same_figures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a = torch.randn(300, 1000)
    b = a.clone()
    b[200:] += 1e-3 * torch.randn(100, 1000)
    b[250, 7] += 5
    whole = pair(tmp_path, a, b, workers=1, max_memory=1 << 28)
    small = pair(tmp_path, a, b, workers=3, max_memory=1)
    assert whole.index == small.index == (250, 7)
    assert (whole.count, whole.largest) == (small.count, small.largest)
    assert small.relative == pytest.approx(whole.relative, rel=1e-12)
    truth = (b.double() - a.double()).norm() / b.double().norm()
    assert small.relative == pytest.approx(float(truth), rel=1e-12)


def test_padding_of_the_vocabulary_is_nobodys_weights(tmp_path: Path) -> None:
    """Training leaves what it drew in those rows, a split repeats the last true one."""
    convert(LLAMA.hf, tmp_path / "split", to="megatron", tp=2)
    found = diff(LLAMA.run, tmp_path / "split")
    assert (
        found.ok
        and ("info", "rows of the vocabulary from 300 on are padding, and not compared") in found.notes
    )
    assert found.tensors and all(t.shape[0] != 512 for t in found.tensors)
    named = diff(LLAMA.run, tmp_path / "split", vocab_size=512)
    wrong = [t for t in named.tensors if t.verdict == "differs"]
    assert {t.name for t in wrong} == {"embedding.word_embeddings.weight", "output_layer.weight"}
    assert all(t.index is not None and t.index[0] >= 300 for t in wrong)


@pytest.mark.parametrize("case", [LLAMA, VIRTUAL, OLD], ids=str)
def test_ranks_equal_the_model_they_hold(case: Case) -> None:
    found = diff(case.run, case.hf)
    assert found.ok and found.counts()["equal"] == len(found.tensors) > 10
    assert not any("linear_" in t.name for t in found.tensors)


def test_ranks_of_two_layouts() -> None:
    found = diff(LLAMA.run, VIRTUAL.run)
    assert found.ok and len(found.tensors) > 10


def test_deepspeed_against_what_it_became(tmp_path: Path) -> None:
    convert(DEMO, tmp_path / "out", dtype="bfloat16")
    found = diff(DEMO, tmp_path / "out")
    assert not found.ok and found.counts()["dtype"] == len(found.tensors)
    assert diff(DEMO, tmp_path / "out", rtol=2**-8).ok
    assert max(t.relative for t in found.tensors) < 2**-8


def test_a_moved_value_is_found_under_hugging_face_names(tmp_path: Path) -> None:
    tensors = load_file(LLAMA.hf / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name][3, 5] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((LLAMA.hf / "config.json").read_bytes())
    found = diff(LLAMA.run, tmp_path)
    assert [(t.name, t.index) for t in found.tensors if t.verdict == "differs"] == [(name, (3, 5))]


def test_copies_that_disagree_are_a_difference(tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(LLAMA.run, run)
    from ckptconv.api.explain import explain
    from ckptconv.verify.explain import Explained

    norm = explain(run, "model.norm.weight")
    assert isinstance(norm, Explained)
    (copy,) = [p for p in norm.pieces if p.copy]
    with open(copy.ranges[0].path, "r+b") as f:
        f.seek(copy.ranges[0].first + 3)
        f.write(b"\x00")
    found = diff(run, LLAMA.hf)
    spoilt = one(found, "model.norm.weight")
    assert spoilt.verdict == "differs" and spoilt.count == 0 and len(spoilt.conflicts) == 1
    assert not found.ok and sum(t.verdict != "equal" for t in found.tensors) == 1
    assert any("copies of model.norm.weight disagree" in text for _, text in found.notes)


def test_tied_weights_stand_for_both_names(tmp_path: Path) -> None:
    case = CASES / "qwen2tied_z3_bf16_ws2_save16"
    run = case_run(case.name, tmp_path / "run")
    convert(run, tmp_path / "out")
    assert diff(run, tmp_path / "out").ok


def test_models_of_other_architectures_share_few_names() -> None:
    found = diff(OLD.run, DEMO)
    assert [(t.name, t.verdict) for t in found.tensors] == [("lm_head.weight", "shape")]
    assert not found.ok and found.only_a and found.only_b


def test_a_config_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError):
        diff(OLD.run, OLD.hf, config=str(LLAMA.hf))


def test_patterns_choose_tensors(tmp_path: Path) -> None:
    found = diff(DEMO, DEMO, tensors=["*norm*"])
    assert found.tensors and all("norm" in t.name for t in found.tensors)
    with pytest.raises(UsageError, match="no tensor matches nothing"):
        diff(DEMO, DEMO, tensors=["nothing"])


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_tolerances_are_numbers_from_0_on(value: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        diff(DEMO, DEMO, atol=value)


def test_exit_codes_and_json(tmp_path: Path) -> None:
    a = model(tmp_path / "a.safetensors", w=torch.ones(3), v=torch.ones(3))
    b = model(tmp_path / "b.safetensors", w=torch.tensor([1, 1, math.inf]), v=torch.ones(3))
    result = run_command("diff", a, b, "--json")
    said = json.loads(result.out)
    assert result.code == 3 and not said["ok"]
    assert [t["name"] for t in said["tensors"]] == ["w"]
    assert said["tensors"][0]["values"] == [1.0, "inf"]
    assert {t["name"] for t in json.loads(run_command("diff", a, b, "--json", "--all").out)["tensors"]} == {
        "v",
        "w",
    }
    near = model(tmp_path / "c.safetensors", w=torch.ones(3) + 1e-4, v=torch.ones(3))
    assert run_command("diff", a, near).code == 3
    shown = succeeds("diff", a, near, "--atol", "1e-3").out
    assert "1 within the tolerances" in shown and "1 equal" in shown
    assert "v" not in shown.split()
    assert succeeds("diff", a, near, "--rtol", "1e-3", "--quiet").out == ""
    fails(2, "diff", a, near, "--tensors", "x*", naming=("x*",))
    fails(1, "diff", a, tmp_path / "nowhere", naming=("nowhere",))


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    a = model(tmp_path / "a.safetensors", **{"x\x1b[31m\u202e[bold]": torch.ones(1)})
    b = model(tmp_path / "b.safetensors", y=torch.ones(1))
    shown = run_command("diff", a, b).out
    assert "\x1b" not in shown and "\u202e" not in shown and "\\x1b[31m\\u202e[bold]" in shown
