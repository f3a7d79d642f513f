"""LoRA adapters inside Megatron's and MindSpeed's ranks are merged, or written as PEFT adapters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_cases import Case, find_cases
from megatron_lora import Factors, made_factors, merged, read_ranks, with_adapters, write_ranks
from running import ROOT, fails, loaded, succeeds

LORA = ROOT / "fixtures" / "megatron" / "lora"
ATTENTION = r"self_attention\.linear_(qkv|proj)\.weight"
DENSE = rf".*({ATTENTION}|mlp\.linear_fc[12]\.weight)"
OLD = r".*(query_key_value|dense|dense_h_to_4h|dense_4h_to_h)\.weight"
EXPERTS = r".*experts\..*linear_fc[12]\.weight"
LATENT = r".*self_attention\.linear_(q_up_proj|kv_up_proj|proj|qkv)\.weight"

# Case, weights with adapters, pipeline and expert parallel size, modules whole on every rank
KINDS = {
    "te": ("llama-torch_tp2pp2_te", DENSE, 2, 1, ()),
    "virtual-stages": ("llama-torch_tp1pp2vpp2_te", DENSE, 2, 1, ()),
    "conv1d-old-versions": ("gpt2-torch_tp2pp2_oldv1", OLD, 2, 1, ()),
    "mindspeed-grouped-queries": ("v2_qwen2_tp2pp2", DENSE, 2, 1, ()),
    "packed-in-hf": ("v2_phi3_tp2pp1", DENSE, 1, 1, ()),
    "head": ("v2_llama_tp2pp2", rf"{DENSE}|output_layer\.weight", 2, 1, ()),
    "folded": ("v2_llama_pp2dualpipev", DENSE, 2, 1, ()),
    "no-op-layers": ("v2_llama_tp2pp2noop", DENSE, 2, 1, ()),
    "tied": ("v2_qwen2_tied_tp2pp2", DENSE, 2, 1, ()),
    "experts": ("mixtral-torch_tp1pp1ep2_local", rf"{EXPERTS}|.*{ATTENTION}", 1, 2, ()),
    "experts-tp": ("v2_qwen3_moe_tp2ep2", rf"{EXPERTS}|.*{ATTENTION}", 1, 2, ()),
    "latent": ("v2_dsv3_tp2ep2", rf"{LATENT}|{EXPERTS}", 1, 2, ("linear_qkv",)),
}
RANK, ALPHA = 2, 6


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def case(name: str) -> Case:
    return next(c for c in find_cases() if str(c) == name)


def adapted(name: str, pattern: str, folder: Path, pp: int, ep: int, whole: tuple[str, ...] = ()) -> Factors:
    """Write a case's ranks with adapters (``run``) and with the same merged by torch (``merged``)."""
    found = case(name)
    ranks = read_ranks(found.run)
    factors = made_factors(
        ranks, lambda n: re.fullmatch(pattern, n) is not None, sizes={"pp": pp, "ep": ep}, whole=whole
    )
    write_ranks(with_adapters(ranks, factors), found.run, folder / "run")
    write_ranks(merged(ranks, factors, ALPHA / RANK), found.run, folder / "merged")
    return factors


def equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_merge(kind: str, tmp_path: Path, out: Path) -> None:
    name, pattern, pp, ep, whole = KINDS[kind]
    adapted(name, pattern, tmp_path, pp, ep, whole)
    hf = case(name).hf
    succeeds("megatron-merge", tmp_path / "merged", tmp_path / "expected", "--config", hf)
    flags = ("--lora", "merge", "--lora-alpha", ALPHA, "--lora-r", RANK)
    succeeds("megatron-merge", tmp_path / "run", out, "--config", hf, *flags)
    found, base = loaded(out), loaded(hf)
    equal(found, loaded(tmp_path / "expected"))
    assert sum(not torch.equal(found[n], base[n]) for n in found if n in base) >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_alone_is_the_same_merge(kind: str, tmp_path: Path, out: Path) -> None:
    """What is written for PEFT, added to the base model as PEFT adds it, is the merged model."""
    name, pattern, pp, ep, whole = KINDS[kind]
    adapted(name, pattern, tmp_path, pp, ep, whole)
    hf = case(name).hf
    succeeds(
        "megatron-merge", tmp_path / "run", out, "--config", hf, "--lora", "adapter", "--lora-alpha", ALPHA
    )
    assert sorted(p.name for p in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    succeeds("megatron-merge", case(name).run, tmp_path / "base", "--config", hf)
    succeeds("megatron-merge", tmp_path / "merged", tmp_path / "expected", "--config", hf)
    base, factors = loaded(tmp_path / "base"), load_file(out / "adapter_model.safetensors")
    for key in [k for k in factors if ".lora_A." in k]:
        module = key.removesuffix(".lora_A.weight")
        weight = f"{module.removeprefix('base_model.model.')}.weight"
        delta = factors[f"{module}.lora_B.weight"].float() @ factors[key].float()
        if config["fan_in_fan_out"]:
            delta = delta.T
        base[weight] = (base[weight].float() + ALPHA / RANK * delta).to(base[weight].dtype)
    equal(base, loaded(tmp_path / "expected"))


@pytest.mark.parametrize("kind", ["te", "virtual-stages", "packed-in-hf", "experts-tp", "latent"])
def test_an_adapter_in_a_folder_of_its_own(kind: str, tmp_path: Path, out: Path) -> None:
    """The factors alone, as ``--lora-ckpt-filter`` saves them, and with copies of the frozen weights."""
    name, pattern, pp, ep, whole = KINDS[kind]
    factors = adapted(name, pattern, tmp_path, pp, ep, whole)
    run, hf = case(name).run, case(name).hf
    write_ranks(with_adapters(read_ranks(run), factors, base=False), run, tmp_path / "alone")
    succeeds("megatron-merge", tmp_path / "merged", tmp_path / "expected", "--config", hf)
    for adapter in ("alone", "run"):
        flags = ("--config", hf, "--adapter", tmp_path / adapter, "--lora-alpha", ALPHA)
        succeeds("megatron-merge", run, out / adapter, *flags)
        equal(loaded(out / adapter), loaded(tmp_path / "expected"))


def grouped(name: str, folder: Path, *, pp: int) -> Factors:
    return adapted(name, r".*mlp\.experts\.weight[12]", folder, pp, 2)


@pytest.mark.parametrize(("name", "pp"), [("v2_qwen3_moe_gg_tp2pp2ep2", 2), ("v1_dsv2_mc_gg_ep2", 1)])
def test_factors_of_experts_in_one_tensor(name: str, pp: int, tmp_path: Path, out: Path) -> None:
    factors = adapted(name, r".*mlp\.experts\.weight[12]", tmp_path, pp, 2)
    run, hf = case(name).run, case(name).hf
    succeeds("megatron-merge", tmp_path / "merged", tmp_path / "expected", "--config", hf)
    flags = ("--config", hf, "--lora-alpha", ALPHA)
    succeeds("megatron-merge", tmp_path / "run", out / "inside", *flags, "--lora", "merge")
    equal(loaded(out / "inside"), loaded(tmp_path / "expected"))
    write_ranks(with_adapters(read_ranks(run), factors, base=False), run, tmp_path / "alone")
    beside = (*flags, "--adapter", tmp_path / "alone")
    if "dsv2" in name:  # its first layer has no experts, so no factors say which layers theirs are
        fails(
            4,
            "megatron-merge",
            run,
            out / "alone",
            *beside,
            naming=("3 layers", "numbered"),
            out=out / "alone",
        )
    else:
        succeeds("megatron-merge", run, out / "alone", *beside)
        equal(loaded(out / "alone"), loaded(tmp_path / "expected"))


def test_what_mindspeed_merges(tmp_path: Path, out: Path) -> None:
    """MindSpeed-LLM rounds the product before it adds: its answer is within one rounding of this one."""
    found = case("v2_llama_tp2pp2")
    ranks, stored = read_ranks(found.run), load_file(LORA / "factors.safetensors")
    factors = {}
    for file, rank in ranks.items():
        for name in rank["model"]:
            key = f"{file.split('/')[1]}:{name.removesuffix('.weight')}"
            if f"{key}.lora_A.default.weight" in stored:
                factors[file, "model", name] = tuple(stored[f"{key}.lora_{p}.default.weight"] for p in "AB")
    assert len(factors) == len(stored) // 2 == 32
    write_ranks(merged(ranks, factors, 2.0, early=True), found.run, tmp_path / "early")
    succeeds("megatron-merge", tmp_path / "early", tmp_path / "theirs", "--config", found.hf)
    theirs = loaded(tmp_path / "theirs")
    digests = {
        n: hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest() for n, t in theirs.items()
    }
    assert digests == json.loads((LORA / "expected.json").read_text())

    write_ranks(with_adapters(ranks, factors), found.run, tmp_path / "adapter")
    flags = ("--config", found.hf, "--adapter", tmp_path / "adapter", "--lora-alpha", 8, "--lora-r", 4)
    succeeds("megatron-merge", found.run, out, *flags)
    write_ranks(merged(ranks, factors, 2.0), found.run, tmp_path / "late")
    succeeds("megatron-merge", tmp_path / "late", tmp_path / "exact", "--config", found.hf)
    ours, exact, base = loaded(out), loaded(tmp_path / "exact"), loaded(found.hf)
    for name, tensor in theirs.items():
        # An ulp of the largest number in the sum: near zero, where both nearly cancel, ulps say nothing.
        largest = torch.stack([t[name].float().abs() for t in (theirs, ours, base)]).amax(0)
        product = (ours[name].float() - base[name].float()).abs()
        ulp = 2.0 ** (torch.floor(torch.log2(torch.maximum(largest, product).clamp_min(1e-30))) - 7)
        assert ((tensor.float() - ours[name].float()).abs() <= 2 * ulp).all(), name
        assert ((exact[name].float() - ours[name].float()).abs() <= ulp).all(), name
    assert any(not torch.equal(ours[n], base[n]) for n in ours)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    adapted("v2_llama_tp2pp2", DENSE, tmp_path, 2, 1)
    return tmp_path / "run"


HF = ("--config", case("v2_llama_tp2pp2").hf)


def test_adapters_are_never_dropped_in_silence(run: Path, out: Path) -> None:
    fails(
        4, "megatron-merge", run, out, *HF, naming=("linear_qkv", "--lora merge", "--lora adapter"), out=out
    )
    succeeds("megatron-merge", run, out, *HF, "--drop", "*.lora_*")
    equal(loaded(out), loaded(case("v2_llama_tp2pp2").hf))


def test_alpha_is_asked_for(run: Path, out: Path) -> None:
    fails(2, "megatron-merge", run, out, *HF, "--lora", "merge", naming=("--lora-alpha",), out=out)
    wrong = ("--lora", "merge", "--lora-alpha", 6, "--lora-r", 8)
    fails(2, "megatron-merge", run, out, *HF, *wrong, naming=("--lora-r is 8", "rank 2"), out=out)


def rewritten(
    run: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None], **arguments: object
) -> Path:
    """Copy ranks, each model changed."""
    ranks = read_ranks(run)
    for rank in ranks.values():
        change(rank["model"])
    return write_ranks(ranks, run, out, **arguments)


TARGETS = {"lora_target_modules": ["linear_qkv"]}


def test_alpha_of_the_training_arguments(run: Path, tmp_path: Path, out: Path) -> None:
    told = rewritten(run, tmp_path / "told", lambda _: None, lora_alpha=ALPHA, lora_r=RANK, **TARGETS)
    succeeds("megatron-merge", told, out, *HF, "--lora", "merge")
    succeeds("megatron-merge", tmp_path / "merged", tmp_path / "expected", *HF)
    equal(loaded(out), loaded(tmp_path / "expected"))
    other = ("--lora", "merge", "--lora-alpha", 5)
    fails(
        2, "megatron-merge", told, out / "x", *HF, *other, naming=("the training run says 6",), out=out / "x"
    )
    idle = rewritten(run, tmp_path / "idle", lambda _: None, lora_alpha=32, lora_r=16, lora_target_modules=[])
    fails(2, "megatron-merge", idle, out / "x", *HF, "--lora", "merge", naming=("--lora-alpha",))
    wrong = rewritten(run, tmp_path / "wrong", lambda _: None, lora_alpha=ALPHA, lora_r=16, **TARGETS)
    flags = ("--lora", "merge")
    fails(4, "megatron-merge", wrong, out / "x", *HF, *flags, naming=("rank 2", "the training run says 16"))


def test_what_does_not_fit_is_refused(run: Path, tmp_path: Path, out: Path) -> None:
    flags = (*HF, "--lora", "merge", "--lora-alpha", ALPHA)

    def without_b(model: dict[str, torch.Tensor]) -> None:
        del model["decoder.layers.0.self_attention.linear_proj.lora_B.default.weight"]

    def two(model: dict[str, torch.Tensor]) -> None:
        model |= {k.replace(".default.", ".other."): v for k, v in model.items() if ".lora_" in k}

    def strange(model: dict[str, torch.Tensor]) -> None:
        model |= {
            k.replace("linear_proj", "linear_odd"): v for k, v in model.items() if "linear_proj.lora_" in k
        }

    def higher(model: dict[str, torch.Tensor]) -> None:
        for name in [n for n in model if "linear_proj.lora_B" in n]:
            model[name] = torch.cat([model[name], model[name]])

    for change, name in ((without_b, "the other factor"), (two, "other.weight"), (strange, "linear_odd")):
        broken = rewritten(run, tmp_path / change.__name__, change)
        fails(4, "megatron-merge", broken, out, *flags, naming=(name,), out=out)
    broken = rewritten(run, tmp_path / "higher", higher)
    fails(
        4, "megatron-merge", broken, out, *flags, naming=("linear_proj.lora_B", "asks for [64, 2]"), out=out
    )


def test_replicated_factors_are_compared(run: Path, tmp_path: Path, out: Path) -> None:
    ranks = read_ranks(run)
    name = "decoder.layers.0.self_attention.linear_qkv.lora_A.default.weight"
    next(rank for file, rank in ranks.items() if "mp_rank_01_000" in file)["model"][name][0, 0] += 1
    write_ranks(ranks, run, tmp_path / "differs")
    flags = (*HF, "--lora", "merge", "--lora-alpha", ALPHA)
    fails(3, "megatron-merge", tmp_path / "differs", out, *flags, naming=("lora_A",), out=out)


def test_an_adapter_of_another_model(run: Path, tmp_path: Path, out: Path) -> None:
    base = case("v2_llama_tp2pp2").run
    ranks = read_ranks(run)
    next(iter(ranks.values()))["model"]["decoder.layers.1.mlp.linear_fc1.base_layer.weight"][0, 0] += 1
    write_ranks(ranks, run, tmp_path / "other")
    flags = (*HF, "--lora-alpha", ALPHA)
    message = fails(3, "megatron-merge", base, out, *flags, "--adapter", tmp_path / "other", out=out)
    assert "gate_proj" in message and "adapter/" in message
    fails(2, "megatron-merge", run, out, *flags, "--adapter", run, naming=("--lora merge",), out=out)
    fails(2, "megatron-merge", base, out, *flags, "--adapter", base, naming=("no LoRA adapters",), out=out)
    peft = ROOT / "fixtures" / "lora" / "llama" / "adapter"
    fails(2, "megatron-merge", base, out, *flags, "--adapter", peft, naming=("holds no ranks",), out=out)


def test_factors_alone_need_their_weights(run: Path, tmp_path: Path, out: Path) -> None:
    def alone(model: dict[str, torch.Tensor]) -> None:
        for name in [n for n in model if ".lora_" not in n]:
            del model[name]

    def first(model: dict[str, torch.Tensor]) -> None:
        for name in [n for n in model if ".lora_" not in n or "linear_fc2" in n]:
            del model[name]

    flags = (*HF, "--lora-alpha", ALPHA)
    factors = rewritten(run, tmp_path / "alone", alone)
    fails(
        4,
        "megatron-merge",
        factors,
        out,
        *flags,
        "--lora",
        "merge",
        naming=("no such weight", "--adapter"),
        out=out,
    )
    succeeds("megatron-merge", factors, out / "a", *flags, "--lora", "adapter")
    succeeds("megatron-merge", run, out / "b", *flags, "--lora", "adapter")
    equal(
        load_file(out / "a" / "adapter_model.safetensors"), load_file(out / "b" / "adapter_model.safetensors")
    )
    untold = rewritten(run, tmp_path / "untold", first)
    fails(4, "megatron-merge", untold, out / "c", *flags, "--lora", "adapter", naming=("gate", "--adapter"))


def test_adapters_of_split_projections_are_refused(tmp_path: Path, out: Path) -> None:
    """Of one Hugging Face weight each half has an adapter of its own: no product of the same rank."""
    name = "v2_dsv3_gg_mmsplit_tp2pp2ep2"
    found = case(name)
    ranks = read_ranks(found.run)
    factors = made_factors(
        ranks,
        lambda n: n.endswith(("linear_qk_nope.weight", "linear_qk_rope.weight")),
        sizes={"pp": 2, "ep": 2},
        whole=(),
    )
    write_ranks(with_adapters(ranks, factors), found.run, tmp_path / "run")
    flags = ("--config", found.hf, "--lora", "merge", "--lora-alpha", ALPHA)
    fails(
        4, "megatron-merge", tmp_path / "run", out, *flags, naming=("q_b_proj", "several adapters"), out=out
    )


def test_ranks_are_not_made_with_adapters(run: Path, out: Path) -> None:
    flags = (*HF, "--to", "megatron", "--lora", "merge", "--lora-alpha", ALPHA)
    fails(2, "convert", run, out, *flags, naming=("--to hf",), out=out)
    fails(4, "convert", run, out, *HF, "--to", "megatron", naming=("LoRA adapters",), out=out)
