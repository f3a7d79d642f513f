"""Norms stored without their 1 get it on the way to Hugging Face, and lose it on the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_cases import Case, find_cases, model_of
from megatron_lora import chunks_of, read_ranks, write_ranks
from running import loaded, succeeds

# The arguments that say so, and cases with norms of every kind: q and k, latent, post norms, enorm and hnorm.
FLAGS = ("apply_layernorm_1p", "layernorm_zero_centered_gamma")
CASES = (
    "llama-torch_tp2pp2_te",
    "gpt2-torch_tp2pp2_oldv1",
    "v2_qwen3_tp2pp2",
    "v2_glm45_tp2ep2",
    "deepseek_v3-torch_tp1pp1_te_grouped_mtp",
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def case(name: str) -> Case:
    return next(c for c in find_cases() if str(c) == name)


def is_norm(name: str) -> bool:
    """Whether a tensor is a norm's weight, by the names of either side."""
    module, _, leaf = name.rpartition(".")
    last = module.rpartition(".")[2]
    if leaf == "layer_norm_weight":
        return True
    return leaf == "weight" and ("norm" in last or last.startswith("ln_"))


def zero_centered(run: Path, out: Path, flag: str) -> Path:
    """Write ranks whose norms hold random numbers, to be taken for ``1 + weight``; equal on all ranks."""
    ranks = read_ranks(run)
    values: dict[tuple[str, bytes], Tensor] = {}
    for rank in ranks.values():
        for chunk, tensors in chunks_of(rank):
            for key in [k for k, v in tensors.items() if isinstance(v, Tensor) and is_norm(k)]:
                old = tensors[key]
                place = f"{chunk} {key}", old.view(torch.uint8).numpy().tobytes()
                if place not in values:
                    values[place] = (torch.rand(old.shape) * 0.5 - 0.25).to(old.dtype)
                tensors[key] = values[place]
    return write_ranks(ranks, run, out, **{flag: True})


def shifted(tensors: Mapping[str, Tensor], by: float) -> dict[str, Tensor]:
    return {n: (t.float() + by).to(t.dtype) if is_norm(n) else t for n, t in tensors.items()}


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def ranks_equal(found: Path, expected: Path, by: float = 0.0) -> None:
    ours, theirs = read_ranks(found), read_ranks(expected)
    assert ours.keys() == theirs.keys()
    for name, rank in theirs.items():
        kept = {k: v for k, v in model_of(rank).items() if isinstance(v, Tensor)}
        mine = {k: v for k, v in model_of(ours[name]).items() if isinstance(v, Tensor)}
        words = {k for k in kept if "word_embeddings" in k or "output_layer" in k}
        equal(
            {k: v for k, v in mine.items() if k not in words},
            shifted({k: v for k, v in kept.items() if k not in words}, by),
        )


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", CASES)
def test_every_norm_gets_its_one(name: str, flag: str, tmp_path: Path, out: Path) -> None:
    """The same ranks without the argument give the norms as they are stored; those and 1 are the answer."""
    found = case(name)
    run = zero_centered(found.run, tmp_path / "run", flag)
    plain = zero_centered_off(run, tmp_path / "plain")
    succeeds("megatron-merge", plain, tmp_path / "stored", "--config", found.hf)
    result = succeeds("megatron-merge", run, out, "--config", found.hf, "--dry-run", "--json")
    stored = loaded(tmp_path / "stored")
    norms = [n for n in stored if is_norm(n)]
    steps = [s for s in json.loads(result.out)["steps"] if s["kind"] == "add"]
    assert [s["what"] for s in steps] == [f"{len(norms)} tensors +1"]
    succeeds("megatron-merge", run, out, "--config", found.hf)
    equal(loaded(out), shifted(stored, 1.0))
    assert len(norms) >= 5 and not any(n.endswith("bias") for n in norms)


def zero_centered_off(run: Path, out: Path) -> Path:
    return write_ranks(read_ranks(run), run, out, **dict.fromkeys(FLAGS, False))


def test_as_float32_only_one_rounding(tmp_path: Path, out: Path) -> None:
    found = case("v2_qwen3_tp2pp2")
    run = zero_centered(found.run, tmp_path / "run", FLAGS[0])
    succeeds("megatron-merge", run, out, "--config", found.hf, "--dtype", "float32")
    plain = zero_centered_off(run, tmp_path / "plain")
    succeeds("megatron-merge", plain, tmp_path / "stored", "--config", found.hf, "--dtype", "float32")
    equal(loaded(out), shifted(loaded(tmp_path / "stored"), 1.0))


@pytest.mark.parametrize("name", ["llama-torch_tp2pp2_te", "v2_qwen3_tp2pp2"])
def test_a_target_like_one_that_is_zero_centered(name: str, tmp_path: Path, out: Path) -> None:
    """From Hugging Face the 1 is taken off; from such ranks nothing changes; to other ranks it is added."""
    found = case(name)
    like = zero_centered(found.run, tmp_path / "like", FLAGS[1])
    flags = ("--to", "megatron", "--quiet", "--config", found.hf)
    succeeds("convert", found.hf, out / "a", *flags, "--like", like)
    ranks_equal(out / "a", found.run, -1.0)

    succeeds("convert", like, out / "b", *flags, "--like", like)
    ranks_equal(out / "b", like)

    succeeds("convert", like, out / "c", *flags, "--like", found.run)
    ranks_equal(out / "c", like, 1.0)

    succeeds("convert", found.run, out / "d", *flags, "--like", like)
    ranks_equal(out / "d", found.run, -1.0)

    sources = {"a": found.hf, "b": like, "c": like, "d": found.run}
    for written, source in sources.items():
        succeeds("verify-roundtrip", source, out / written, "--config", found.hf)


def test_another_layout_stays_zero_centered(tmp_path: Path, out: Path) -> None:
    """Cut otherwise, norms are the same and the arguments go on saying what they are."""
    found = case("llama-torch_tp2pp2_te")
    run = zero_centered(found.run, tmp_path / "run", FLAGS[1])
    succeeds("convert", run, out / "tp1", "--to", "megatron", "--tp", 1, "--config", found.hf)
    (rank,) = read_ranks(out / "tp1").values()
    assert rank["args"].layernorm_zero_centered_gamma is True
    succeeds("megatron-merge", out / "tp1", out / "back", "--config", found.hf)
    succeeds("megatron-merge", run, out / "direct", "--config", found.hf)
    equal(loaded(out / "back"), loaded(out / "direct"))
    stored = [v for k, v in model_of(rank).items() if k.endswith("final_layernorm.weight")]
    whole = loaded(out / "direct")["model.norm.weight"]
    assert torch.equal(stored[0].float() + 1, whole.float())


def test_families_that_hold_norms_so_themselves(tmp_path: Path, out: Path) -> None:
    """Gemma's norms are zero-centred in Hugging Face as well."""
    found = case("v1_gemma_mc_tp2pp1")
    run = zero_centered(found.run, tmp_path / "run", FLAGS[0])
    succeeds("megatron-merge", run, out, "--config", found.hf)
    stored = next(
        v for k, v in model_of(next(iter(read_ranks(run).values()))).items() if "final_layernorm" in k
    )
    assert torch.equal(loaded(out)["model.norm.weight"], stored)
