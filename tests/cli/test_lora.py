"""LoRA adapters are merged as peft merges them, or written as peft writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptconv
from running import CASES, ROOT, assert_equal, fails, loaded, succeeds

LORA = ROOT / "fixtures" / "lora"
NAMES = ("llama", "gpt2", "qwen2")
DEEPSPEED = "llama_z3_bf16_ws2_lora"

# Values reach 10; the fp32 sum over the rank has another order here than in a BLAS.
CLOSE = dict(rtol=1e-6, atol=2e-6)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def wrapped(name: str, folder: Path, *, config: bool = True) -> Path:
    """Lay out a wrapped model's state dict as a run leaves it: configs beside it."""
    case = LORA / name
    folder.mkdir(exist_ok=True)
    shutil.copy(case / "wrapped.safetensors", folder / "model.safetensors")
    shutil.copy(case / "base" / "config.json", folder)
    if config:
        shutil.copy(case / "adapter" / "adapter_config.json", folder)
    return folder


def assert_merged(found: dict[str, torch.Tensor], name: str) -> None:
    """Assert that tensors are what merge_and_unload made, and not the base model."""
    expected = load_file(LORA / name / "merged.safetensors")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        torch.testing.assert_close(found[key], tensor, **CLOSE)
    base = load_file(LORA / name / "base" / "model.safetensors")
    changed = [n for n, t in base.items() if not torch.equal(t, found[n])]
    assert len(changed) >= 3
    for key in base.keys() - set(changed):
        assert torch.equal(found[key], expected[key])


@pytest.mark.parametrize("name", NAMES)
def test_merge(name: str, tmp_path: Path, out: Path) -> None:
    source = wrapped(name, tmp_path / "run")
    succeeds("convert", source, out, "--to", "hf", "--lora", "merge")
    assert_merged(loaded(out), name)
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_merge_of_a_saved_adapter(name: str, suffix: str, tmp_path: Path, out: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(LORA / name / "adapter", adapter)
    if suffix == "bin":
        file = adapter / "adapter_model.safetensors"
        torch.save(load_file(file), adapter / "adapter_model.bin")
        file.unlink()
    succeeds("convert", LORA / name / "base", out, "--to", "hf", "--adapter", adapter)
    assert_merged(loaded(out), name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_the_adapter_alone_is_what_peft_saves(name: str, format: str, tmp_path: Path, out: Path) -> None:
    source = wrapped(name, tmp_path / "run")
    result = succeeds("convert", source, out, "--to", "hf", "--lora", "adapter", "--format", format)
    assert "base model are left out" in result.err
    assert {p.name for p in out.iterdir()} == {f"adapter_model.{format}", "adapter_config.json"}
    file = out / f"adapter_model.{format}"
    found = load_file(file) if format == "safetensors" else torch.load(file)
    expected = load_file(LORA / name / "adapter" / "adapter_model.safetensors")
    # peft adds the frozen base weight of an embedding that is adapted; the base model holds it.
    expected = {n: t for n, t in expected.items() if "embed_tokens.base_layer" not in n}
    assert_equal(dict(found), expected)
    theirs = json.loads((LORA / name / "adapter" / "adapter_config.json").read_text())
    assert json.loads((out / "adapter_config.json").read_text()) == theirs


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_alone_merges_to_the_same(name: str, tmp_path: Path, out: Path) -> None:
    source = wrapped(name, tmp_path / "run")
    succeeds("convert", source, tmp_path / "adapter", "--to", "hf", "--lora", "adapter")
    base = LORA / name / "base"
    succeeds("convert", base, out, "--to", "hf", "--adapter", tmp_path / "adapter")
    succeeds("convert", source, tmp_path / "merged", "--to", "hf", "--lora", "merge")
    assert_equal(loaded(out), loaded(tmp_path / "merged"))


def deepspeed_answers(scale: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    truth = load_file(CASES / DEEPSPEED / "gold_fp32.safetensors")
    merged = {}
    for name, tensor in truth.items():
        if ".lora_" in name:
            continue
        module = name.removesuffix(".base_layer.weight")
        if module != name:
            b, a = (truth[f"{module}.lora_{part}.default.weight"] for part in "BA")
            tensor = tensor + scale * (b @ a)
        merged[name.replace(".base_layer.", ".")] = tensor.to(dtype)
    return merged


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_from_deepspeed(dtype: str, out: Path) -> None:
    case = CASES / DEEPSPEED
    flags = ("--config", case, "--lora", "merge", "--lora-alpha", 8, "--lora-r", 2, "--dtype", dtype)
    result = succeeds("deepspeed-to-hf", case / "ckpt", out, *flags)
    assert "pass through" not in result.err
    found, expected = loaded(out), deepspeed_answers(4.0, getattr(torch, dtype))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **(CLOSE if dtype == "float32" else {}))
    assert not torch.equal(
        found["model.layers.0.self_attn.q_proj.weight"],
        deepspeed_answers(0.0, getattr(torch, dtype))["model.layers.0.self_attn.q_proj.weight"],
    )


def test_an_adapter_config_is_made_where_there_is_none(out: Path) -> None:
    case = CASES / DEEPSPEED
    succeeds("deepspeed-to-hf", case / "ckpt", out, "--lora", "adapter", "--lora-alpha", 5)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 5)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    truth = load_file(case / "gold_fp32.safetensors")
    expected = {"base_model.model." + n.replace(".default", ""): t for n, t in truth.items() if ".lora_" in n}
    assert_equal(load_file(out / "adapter_model.safetensors"), expected)


def test_without_the_flag_adapters_pass_through(out: Path) -> None:
    case = CASES / DEEPSPEED
    result = succeeds("deepspeed-to-hf", case / "ckpt", out, "--no-assets")
    assert "--lora merge" in result.err
    assert_equal(loaded(out), load_file(case / "gold_fp32.safetensors"))


def test_a_lazy_model_reads_what_is_written(tmp_path: Path, out: Path) -> None:
    source = wrapped("llama", tmp_path / "run")
    run = ckptconv.open(source)
    model = run.to("hf", lora="merge")
    ckptconv.convert(source, out, lora="merge")
    written = loaded(out)
    assert set(model) == set(written) and len(model) == len(written)
    for name, tensor in written.items():
        assert torch.equal(torch.from_numpy(model.read(name)), tensor)
    operand = "model.layers.0.self_attn.q_proj.weight.lora_A"
    assert operand in model.relation.right and operand not in model
    with pytest.raises(KeyError):
        model.read(operand)
    model.relation.check()


def test_the_plan_says_what_is_added(tmp_path: Path, out: Path) -> None:
    source = wrapped("qwen2", tmp_path / "run")
    result = succeeds("convert", source, out, "--to", "hf", "--lora", "merge", "--dry-run", "--json")
    plan = json.loads(result.out)
    steps = {s["what"] for s in plan["steps"] if s["kind"] == "lora"}
    assert steps == {"6 tensors + 1.5 B A of rank 2", "6 tensors + 1.5 bias of B"}
    terms = {t["name"]: t["terms"] for f in plan["files"] for t in f["tensors"]}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert terms[name] == [
        {"kind": "LowRank", "a": f"{name}.lora_A", "b": f"{name}.lora_B", "scale": 1.5, "transposed": False}
    ]
    assert terms["model.norm.weight"] == []


def test_a_rename_takes_its_adapter_along(tmp_path: Path, out: Path) -> None:
    source = wrapped("llama", tmp_path / "run")
    rules = tmp_path / "rules"
    rules.write_text("model.layers.*.self_attn.q_proj.weight = blocks.*.q\n")
    succeeds("convert", source, out, "--to", "hf", "--lora", "merge", "--no-assets", "--rename", rules)
    expected = load_file(LORA / "llama" / "merged.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    torch.testing.assert_close(loaded(out)["blocks.1.q"], expected, **CLOSE)


def test_a_weight_is_dropped_with_its_adapter(tmp_path: Path, out: Path) -> None:
    source = wrapped("llama", tmp_path / "run")
    flags = ("--to", "hf", "--lora", "merge", "--no-assets")
    weight = "model.layers.0.self_attn.q_proj.weight"
    fails(4, "convert", source, out, *flags, "--drop", weight, naming=(weight, "lora_A", "--drop"), out=out)
    succeeds("convert", source, out, *flags, "--drop", weight + "*")
    assert load_file(LORA / "llama" / "merged.safetensors").keys() - loaded(out).keys() == {weight}


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def resave(folder: Path, change: dict[str, torch.Tensor], *drop: str) -> None:
    path = folder / "model.safetensors"
    tensors = {n: t for n, t in load_file(path).items() if n not in drop}
    save_file({**tensors, **change}, path)


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("fields", "code", "naming"),
    [
        ({"use_dora": True}, 4, ["use_dora", "adapter_config.json"]),
        ({"peft_type": "LOHA"}, 4, ["LOHA"]),
        ({"target_parameters": ["x"]}, 4, ["target_parameters"]),
        ({"r": 3}, 4, ["rank 4", "3"]),
        ({"lora_alpha": "many"}, 1, ["lora_alpha", "many"]),
        ({"lora_alpha": float("nan"), "alpha_pattern": {}}, 1, ["lora_alpha"]),
        ({"alpha_pattern": {"(": 1}}, 1, ["lora_alpha", "regular expression"]),
    ],
)
def test_configs_that_are_refused(
    fields: dict[str, Any], code: int, naming: list[str], tmp_path: Path, out: Path
) -> None:
    source = wrapped("llama", tmp_path / "run")
    edit(source, **fields)
    fails(code, "convert", source, out, "--to", "hf", "--lora", "merge", naming=tuple(naming), out=out)


@pytest.mark.parametrize(
    ("change", "drop", "naming"),
    [
        ({f"{LAYER}.lora_magnitude_vector.default.weight": torch.ones(16)}, (), ["lora_magnitude_vector"]),
        ({f"{LAYER}.lora_A.second.weight": torch.ones(4, 16)}, (), ["default, second", "--drop"]),
        ({"base_model.model.x.hada_w1_a.default": torch.ones(4, 4)}, (), ["hada_w1_a"]),
        ({}, (f"{LAYER}.lora_B.default.weight",), ["q_proj", "lora_B"]),
        ({}, (f"{LAYER}.base_layer.weight",), ["model.layers.0.self_attn.q_proj.weight", "--adapter"]),
        ({f"{LAYER}.lora_A.default.weight": torch.ones(4, 15)}, (), ["q_proj.weight", "[4, 15]"]),
        ({f"{LAYER}.lora_A.default.weight": torch.ones(4, 16, 1)}, (), ["lora_A", "[4, 16, 1]"]),
    ],
)
def test_tensors_that_are_refused(
    change: dict[str, torch.Tensor], drop: tuple[str, ...], naming: list[str], tmp_path: Path, out: Path
) -> None:
    source = wrapped("llama", tmp_path / "run")
    resave(source, change, *drop)
    fails(4, "convert", source, out, "--to", "hf", "--lora", "merge", naming=tuple(naming), out=out)


def test_adapters_that_share_factors_are_refused(tmp_path: Path, out: Path) -> None:
    case = load_file(LORA / "llama" / "wrapped.safetensors")
    other = LAYER.replace("layers.0", "layers.1")
    case[f"{other}.lora_A.default.weight"] = case[f"{LAYER}.lora_A.default.weight"]
    torch.save(case, tmp_path / "model.pt")
    flags = ("--to", "hf", "--lora", "merge", "--lora-alpha", 4, "--no-assets")
    fails(4, "convert", tmp_path / "model.pt", out, *flags, naming=("q_proj.lora_A", "shares"), out=out)


def test_one_of_several_adapters_is_chosen_with_drop(tmp_path: Path, out: Path) -> None:
    source = wrapped("llama", tmp_path / "run")
    second = {f"{LAYER}.lora_{p}.second.weight": torch.ones(s) for p, s in (("A", (4, 16)), ("B", (16, 4)))}
    resave(source, second)
    flags = ("--lora", "merge", "--drop", "*.lora_?.second.*")
    succeeds("convert", source, out, "--to", "hf", *flags)
    assert_merged(loaded(out), "llama")


@pytest.mark.parametrize(
    ("flags", "naming"),
    [
        (("--lora", "merge", "--lora-alpha", 6), ("--lora-alpha", "adapter_config.json")),
        (("--lora", "merge", "--lora-r", 8), ("--lora-r is 8", "rank 4")),
        (("--lora-alpha", 6), ("--lora merge",)),
        (("--lora", "adapter", "--adapter", LORA / "llama" / "adapter"), ("--adapter",)),
        (("--adapter", LORA / "llama" / "adapter"), ("holds LoRA adapters itself",)),
        (("--adapter", LORA / "llama" / "base"), ("adapter_model",)),
    ],
)
def test_flags_that_contradict(
    flags: tuple[object, ...], naming: tuple[str, ...], tmp_path: Path, out: Path
) -> None:
    source = wrapped("llama", tmp_path / "run")
    if flags[-1] == LORA / "llama" / "base":
        source = LORA / "llama" / "base"
    fails(2, "convert", source, out, "--to", "hf", *flags, naming=naming, out=out)


def test_an_unknown_alpha_is_asked_for(tmp_path: Path, out: Path) -> None:
    source = wrapped("llama", tmp_path / "run", config=False)
    fails(2, "convert", source, out, "--to", "hf", "--lora", "merge", naming=("--lora-alpha",), out=out)


def test_a_model_without_adapters(out: Path) -> None:
    base = LORA / "llama" / "base"
    fails(2, "convert", base, out, "--to", "hf", "--lora", "merge", naming=("no LoRA adapters",), out=out)


def test_adapters_of_tied_weights_are_refused(tmp_path: Path, out: Path) -> None:
    source = wrapped("llama", tmp_path / "run")
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    tensors = load_file(source / "model.safetensors")
    embed, head = (
        next(n for n in tensors if w in n and "lora" not in n) for w in ("embed_tokens", "lm_head")
    )
    tensors[head] = tensors[embed].clone()
    save_file(tensors, source / "model.safetensors")
    flags = ("--to", "hf", "--lora", "merge")
    fails(4, "convert", source, out, *flags, naming=("model.embed_tokens.weight", "tied"), out=out)


@pytest.mark.parametrize("start", ["pissa_niter_4", "loftq"])
def test_an_adapter_of_another_base_is_refused(start: str, tmp_path: Path, out: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(LORA / "llama" / "adapter", adapter)
    edit(adapter, init_lora_weights=start)
    base = LORA / "llama" / "base"
    fails(4, "convert", base, out, "--to", "hf", "--adapter", adapter, naming=(start,), out=out)


def test_a_square_weight_without_a_sign_of_its_way_is_refused(tmp_path: Path, out: Path) -> None:
    """GPT-2's attention output is square, so its shape cannot say that it is [in, out]."""
    source = wrapped("gpt2", tmp_path / "run", config=False)
    tensors = load_file(source / "model.safetensors")
    square = "transformer.h.0.attn.c_proj"
    others = [n for n in tensors if ".lora_" in n and square not in n]
    resave(source, {}, *others)
    flags = ("--to", "hf", "--lora", "merge", "--lora-alpha", 6)
    naming = (f"{square}.weight", "adapter_config.json")
    fails(4, "convert", source, out, *flags, naming=naming, out=out)
