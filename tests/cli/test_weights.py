"""Flags that say what is written: dtype, container, shards, names."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from running import CASES, DEMO, assert_equal, case_run, contents, fails, final_names, loaded, succeeds

STAGE_2 = "llama_z2_bf16_ws2_clientstate"
TIED = "qwen2tied_z2_bf16_ws2"
DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case_run(STAGE_2, tmp_path_factory.mktemp("stage2") / "run")


@pytest.fixture(scope="module")
def masters() -> dict[str, torch.Tensor]:
    return load_file(CASES / STAGE_2 / "gold_fp32.safetensors")


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype(run: Path, out: Path, masters: dict[str, torch.Tensor], dtype: str) -> None:
    succeeds("deepspeed-to-hf", run, out, "--dtype", dtype)
    assert_equal(loaded(out), {n: t.to(getattr(torch, dtype)) for n, t in masters.items()})
    config = json.loads((out / "config.json").read_text())
    assert {config.get("dtype"), config.get("torch_dtype")} == {dtype, None}


def _odd_values() -> torch.Tensor:
    """Every pattern of the upper 16 bits, with lower bits that make ties, near ties, and neither."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (upper[:, None] | lower).flatten()
    return torch.where(bits < 1 << 31, bits, bits - (1 << 32)).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", ["float64", *DTYPES])
def test_dtype_rounds_as_torch_does(tmp_path: Path, out: Path, stored: str, dtype: str) -> None:
    """Ties, subnormals, overflow, infinities and NaN, in all the sizes and directions."""
    odd = _odd_values()
    if stored == "float64":
        values = torch.cat([odd.double(), odd.double() * (1 + 2**-30), odd.double() * 1e-30])
    elif stored == "float32":
        values = odd
    else:
        values = torch.arange(1 << 16).to(torch.int32).to(torch.uint16).view(getattr(torch, stored))
    torch.save({"w": values, "ids": torch.arange(7)}, tmp_path / "model.pt")
    succeeds("convert", tmp_path / "model.pt", out, "--to", "hf", "--no-assets", "--dtype", dtype)
    found, expected = loaded(out)["w"], values.to(getattr(torch, dtype))
    assert found.dtype == expected.dtype
    assert torch.equal(found.isnan(), expected.isnan()) and expected.isnan().sum() > 100
    numbers = ~expected.isnan()
    bits = torch.int32 if dtype == "float32" else torch.int16
    assert torch.equal(found.view(bits)[numbers], expected.view(bits)[numbers])
    assert torch.equal(loaded(out)["ids"], torch.arange(7))


def test_overflow_in_float16_is_said(tmp_path: Path, out: Path) -> None:
    torch.save({"w": torch.tensor([1e6, -1e6, 1.0, float("inf")])}, tmp_path / "model.pt")
    result = succeeds(
        "convert", tmp_path / "model.pt", out, "--to", "hf", "--no-assets", "--dtype", "float16"
    )
    assert "2 values are too large" in result.err


def test_weights_model_are_what_the_model_ran_with(run: Path, out: Path) -> None:
    succeeds("deepspeed-to-hf", run, out, "--weights", "model")
    assert_equal(loaded(out), load_file(CASES / STAGE_2 / "gold_module.safetensors"))


def test_format_bin_is_a_right_zip_that_torch_opens(
    run: Path, out: Path, masters: dict[str, torch.Tensor]
) -> None:
    succeeds("deepspeed-to-hf", run, out, "--format", "bin")
    path = out / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert_equal(torch.load(path, weights_only=True), masters)
    assert_equal(torch.load(path, weights_only=True, mmap=True), masters)


def _load_model(folder: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)


@pytest.mark.parametrize(
    "flags",
    [
        ("--format", "bin"),
        ("--max-shard-size", "40KB"),
        ("--format", "bin", "--max-shard-size", "40KB"),
    ],
    ids=" ".join,
)
def test_transformers_loads_it_with_no_name_missing_or_left_over(out: Path, flags: tuple[str, ...]) -> None:
    succeeds("deepspeed-to-hf", DEMO, out, *flags)
    model, info = _load_model(out)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_equal(model.state_dict(), loaded(out))


@pytest.mark.parametrize("case", [TIED, "gpt2tied_z2_fp16_ws3"])
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_tied_models_load_without_a_warning(
    tmp_path: Path,
    case: str,
    container: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import transformers

    run, out = case_run(case, tmp_path / "run"), tmp_path / "out"
    succeeds("deepspeed-to-hf", run, out, "--format", container)
    logger = transformers.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = _load_model(out)
    finally:
        logger.removeHandler(caplog.handler)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    # The tiny vocabulary of the fixture has no token 50256, of which its config speaks.
    said = [r for r in caplog.records if r.levelname in ("WARNING", "ERROR") and "Model config" not in r.msg]
    assert not said
    assert "newly initialized" not in capsys.readouterr().err
    embed, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embed.data_ptr() == head.data_ptr()
    gold = load_file(CASES / case / "gold_fp32.safetensors")
    assert all(torch.equal(model.state_dict()[n], t) for n, t in gold.items())
    assert "lm_head.weight" not in loaded(out)


def test_shards_are_named_and_indexed_as_the_hub_does(out: Path) -> None:
    succeeds("deepspeed-to-hf", DEMO, out, "--max-shard-size", "40KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(out.glob("*.safetensors"))
    assert [p.name for p in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    there = {}
    for path in shards:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            names = list(file.keys())
        there.update(dict.fromkeys(names, path.name))
        data = sum(t.nbytes for t in load_file(path).values())
        assert data <= 40_000 or len(names) == 1
    assert index["weight_map"] == there
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in loaded(out).values())


def test_drop(run: Path, out: Path, masters: dict[str, torch.Tensor]) -> None:
    patterns = ("--drop", "*norm*", "--drop", "lm_head.weight")
    succeeds("deepspeed-to-hf", run, out, "--no-assets", *patterns)
    assert_equal(loaded(out), {n: t for n, t in masters.items() if "norm" not in n and n != "lm_head.weight"})


def test_a_dropped_tensor_is_in_the_plan_with_the_reason(run: Path, out: Path) -> None:
    result = succeeds(
        "deepspeed-to-hf", run, out, "--no-assets", "--drop", "lm_head.weight", "--dry-run", "--json"
    )
    steps = json.loads(result.out)["steps"]
    assert [s["what"] for s in steps if s["kind"] == "drop"] == ["lm_head.weight"]
    assert all("--drop" in s["why"] for s in steps if s["kind"] == "drop")


@pytest.mark.parametrize("name", ["no.such.tensor", "model.layers.7.*"])
def test_drop_that_matches_nothing_is_a_mistake(run: Path, out: Path, name: str) -> None:
    fails(2, "deepspeed-to-hf", run, out, "--drop", name, naming=(name,), out=out)


def test_rename_takes_digits_along(
    tmp_path: Path, run: Path, out: Path, masters: dict[str, torch.Tensor]
) -> None:
    rules = tmp_path / "rules"
    rules.write_text(
        "# a comment\n\nmodel.layers.*.mlp.up_proj.weight = blocks.*.up\nmodel.norm.weight = final\n"
    )
    succeeds("deepspeed-to-hf", run, out, "--no-assets", "--rename", rules)
    found = loaded(out)
    assert torch.equal(found["blocks.1.up"], masters["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(found["final"], masters["model.norm.weight"])
    assert len(found) == len(masters) and "model.norm.weight" not in found


@pytest.mark.parametrize(
    ("rules", "code", "named"),
    [
        ("model.norm.weight = lm_head.weight", 4, "lm_head.weight"),
        ("model.layers.*.mlp.up_proj.weight = same", 4, "same"),
        ("no.such = other", 2, "no.such"),
        ("model.norm.weight other", 2, "line 1"),
        ("a.* = b.*.*", 2, "line 1"),
        ("= b", 2, "line 1"),
    ],
)
def test_rename_that_cannot_be(
    tmp_path: Path, run: Path, out: Path, rules: str, code: int, named: str
) -> None:
    (tmp_path / "rules").write_text(rules)
    fails(
        code,
        "deepspeed-to-hf",
        run,
        out,
        "--no-assets",
        "--rename",
        tmp_path / "rules",
        naming=(named,),
        out=out,
    )


def test_memory_and_workers_change_nothing_but_speed(tmp_path: Path) -> None:
    big = tmp_path / "model.pt"
    torch.save(
        {
            "transposed": torch.randn(200, 300).T,
            "columns": torch.randn(300, 400)[:, 100:300],
            "plain": torch.randn(1_000_000),
            "odd": torch.arange(300_001, dtype=torch.int32).to(torch.uint8),
            "after": torch.randn(300_000).bfloat16(),
            "flags": torch.ones(70_001, dtype=torch.bool),
            "scalar": torch.tensor(3.0),
            "empty": torch.empty(0, 4),
        },
        big,
    )
    expected = torch.load(big)
    for container in ("safetensors", "bin"):
        flags = ("--to", "hf", "--no-assets", "--quiet", "--format", container)
        outs = []
        for i, how in enumerate(
            [(), ("--max-memory", "1MiB"), ("--max-memory", "1B"), ("--workers", "1"), ("--workers", "3")]
        ):
            out = tmp_path / f"{container}{i}"
            succeeds("convert", big, out, *flags, *how)
            outs.append(contents(out))
        assert all(o == outs[0] for o in outs)
        assert_equal(loaded(tmp_path / f"{container}0"), expected)


@pytest.mark.parametrize("size", ["", "0", "-1GB", "5 parsecs", "nan"])
@pytest.mark.parametrize("flag", ["--max-shard-size", "--max-memory"])
def test_a_size_that_is_none(run: Path, out: Path, flag: str, size: str) -> None:
    fails(2, "deepspeed-to-hf", run, out, flag, size, out=out)
    assert final_names(out) == []


def test_unknown_flags_and_values_are_usage_errors(run: Path, out: Path) -> None:
    for flags in (
        ("--dtype", "float12"),
        ("--format", "zip"),
        ("--workers", "-1"),
        ("--weights", "best"),
        ("--no-such",),
    ):
        fails(2, "deepspeed-to-hf", run, out, *flags, out=out)
    fails(2, "convert", run, out, out=out)
    fails(2, "convert", run, out, "--to", "tensorflow", out=out)
    fails(2, "no-such-command", out=out)
