"""``--replicas``: all copies are compared, a sample of each, or none; the plan says which."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptconv
from ckptconv.errors import MismatchError
from ckptconv.plans.plan import Plan
from megatron_layouts import tensors_of, write_model
from running import loaded, succeeds

# Embedding and head are cut; one norm of 100,000 elements (400 kB) a layer has a copy on the second rank.
_CONFIG: dict[str, Any] = dict(
    model_type="llama", vocab_size=2, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, head_dim=2, max_position_embeddings=8, rms_norm_eps=1e-6,
    rope_theta=1e4, hidden_act="silu",
)  # fmt: skip
_NORM = "decoder.final_layernorm.weight"
_COUNT = 100_000


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two tensor-parallel ranks."""
    config = {**_CONFIG, "hidden_size": _COUNT, "vocab_size": 2}
    tensors = tensors_of(config)
    model = write_model(tmp_path / "model", config, tensors)
    ckptconv.convert(
        model, tmp_path / "run", to="megatron", sizes={"tp": 2}, vocab_divisible=1, dialect="core-local"
    )
    shutil.copyfile(model / "config.json", tmp_path / "run" / "config.json")
    return tmp_path / "run"


def spoil(run: Path, element: int) -> None:
    """Change one element of the second rank's copy of the final norm."""
    path = run / "iter_0000001" / "mp_rank_01" / "model_optim_rng.pt"
    rank = torch.load(path, weights_only=False)
    rank["model"][_NORM][element] += 1
    torch.save(rank, path)


def steps(plan: Plan, kind: str) -> list[tuple[str, str]]:
    return [(s.what, s.why) for s in plan.steps if s.kind == kind]


def elements(plan: Plan, name: str) -> int:
    """Count the elements of a copy that are compared."""
    return sum(p.left.numel for p in plan.relation.pairs if p.left_copy and p.left.tensor.endswith(name))


@pytest.mark.parametrize("element", [0, 40_000, _COUNT - 1])
def test_all_find_any_difference(run: Path, tmp_path: Path, element: int) -> None:
    spoil(run, element)
    with pytest.raises(MismatchError, match=r"model\.norm\.weight"):
        ckptconv.convert(run, tmp_path / "out", replicas="all")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_all_is_the_default_where_copies_are_few(run: Path) -> None:
    plan = ckptconv.plan(run)
    assert elements(plan, _NORM) == _COUNT
    assert plan.relation == ckptconv.plan(run, replicas="all").relation
    assert ("model.norm.weight", "1 other copies must agree") in steps(plan, "compare")


@pytest.mark.parametrize("element", [0, 16_383, _COUNT // 2, _COUNT - 16_384, _COUNT - 1])
def test_a_sample_finds_a_difference_in_its_tiles(run: Path, tmp_path: Path, element: int) -> None:
    spoil(run, element)
    with pytest.raises(MismatchError, match=r"model\.norm\.weight"):
        ckptconv.convert(run, tmp_path / "out", replicas="sample")


@pytest.mark.parametrize("element", [16_384, _COUNT - 16_385])
def test_a_sample_does_not_read_beyond_its_tiles(run: Path, tmp_path: Path, element: int) -> None:
    spoil(run, element)
    ckptconv.convert(run, tmp_path / "out", replicas="sample")


def test_the_plan_says_what_a_sample_leaves_out(run: Path) -> None:
    plan = ckptconv.plan(run, replicas="sample")
    plan.relation.check()
    assert elements(plan, _NORM) == 3 * 16_384
    left = [d for d in plan.relation.left_only if d.box.tensor.endswith(_NORM)]
    assert sum(d.box.numel for d in left) == _COUNT - 3 * 16_384
    assert {d.reason for d in left} == {"replica, compared by a sample"}
    assert ("model.norm.weight", "1 other copies must agree, by a sample") in steps(plan, "compare")
    assert any(why == "replica, compared by a sample" for _, why in steps(plan, "left out"))


def test_first_compares_nothing(run: Path, tmp_path: Path) -> None:
    expected = ckptconv.plan(run)
    spoil(run, 5)
    plan = ckptconv.plan(run, replicas="first")
    plan.relation.check()
    assert not any(p.left_copy for p in plan.relation.pairs)
    assert {k for k in plan.stored if k.startswith("mp_rank_01") and k.endswith(_NORM)} == set()
    assert steps(plan, "compare") == []
    copies = sum(p.left.numel for p in expected.relation.pairs if p.left_copy)
    assert (f"{4 * copies:,} bytes", "replica, not compared") in steps(plan, "left out")
    ckptconv.convert(run, tmp_path / "out", replicas="first")
    assert "model.norm.weight" in loaded(tmp_path / "out")


def test_copies_that_outweigh_the_output_are_sampled(run: Path, tmp_path: Path) -> None:
    # Every expert rank repeats all that is dense.
    config: dict[str, Any] = dict(
        model_type="mixtral", vocab_size=64, hidden_size=512, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=256, num_local_experts=4,
        num_experts_per_tok=2, max_position_embeddings=8, rms_norm_eps=1e-6, rope_theta=1e4,
        hidden_act="silu",
    )  # fmt: skip
    model = write_model(tmp_path / "moe", config, tensors_of(config))
    ckptconv.convert(model, tmp_path / "ranks", to="megatron", sizes={"ep": 4}, dialect="core-local")
    flags: dict[str, Any] = {"config": str(model), "assets": False}
    plan = ckptconv.plan(tmp_path / "ranks", **flags)
    assert any("--replicas all" in text for _, text in plan.notes)
    assert any("by a sample" in why for _, why in steps(plan, "compare"))
    asked = ckptconv.plan(tmp_path / "ranks", replicas="all", **flags)
    assert not any("--replicas" in text for _, text in asked.notes)
    assert len(asked.relation.left_only) < len(plan.relation.left_only)
    plan.relation.check()
    ckptconv.convert(tmp_path / "ranks", tmp_path / "out", **flags)
    found = loaded(tmp_path / "out")
    assert all(np.array_equal(found[n].numpy(), t) for n, t in tensors_of(config).items())


def test_a_sample_of_cut_and_turned_copies_accounts_for_every_element(tmp_path: Path) -> None:
    sizes = dict(hidden_size=256, head_dim=128, vocab_size=300, num_hidden_layers=2)
    config = {**_CONFIG, **sizes, "tie_word_embeddings": True}
    model = write_model(tmp_path / "tied", config, tensors_of(config))
    ckptconv.convert(model, tmp_path / "ranks", to="megatron", sizes={"pp": 2})
    plan = ckptconv.plan(tmp_path / "ranks", config=str(model), replicas="sample")
    plan.relation.check()
    name = "output_layer.weight"
    assert 0 < elements(plan, name) < 300 * 256
    again = ckptconv.plan(
        tmp_path / "ranks", to="megatron", config=str(model), replicas="sample", sizes={"tp": 2}
    )
    again.relation.check()
    assert 0 < elements(again, name) < 300 * 256
    none = ckptconv.plan(
        tmp_path / "ranks", to="megatron", config=str(model), replicas="first", sizes={"tp": 2}
    )
    none.relation.check()
    assert elements(none, name) == 0


def test_the_flag(run: Path, tmp_path: Path) -> None:
    spoil(run, 20_000)
    assert "error:" not in succeeds("megatron-merge", run, tmp_path / "a", "--replicas", "sample").err
    assert "error:" not in succeeds("megatron-merge", run, tmp_path / "b", "--replicas", "first").err
