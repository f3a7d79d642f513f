"""Options belong to someone: what nobody owns, or says nothing here, is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptconv
from ckptconv.errors import UsageError
from ckptconv.planning.request import request_of
from running import DEMO
from running import ckptconv as command


@pytest.mark.parametrize(
    ("fields", "naming", "hint"),
    [
        ({"sizes": {"tpp": 2}, "to": "megatron"}, "tpp", "tp"),
        ({"tpp": 2, "to": "megatron"}, "tpp", "--tp"),
        ({"replicas": "some"}, "--replicas", "all"),
        ({"mla": "cut", "to": "megatron"}, "--mla", "split"),
        ({"qkv_layout": "groups", "to": "mindformers"}, "--qkv-layout", "grouped"),
        ({"source_sizes": {"tp": 0}}, "--tp", "from 1"),
        ({"vocab_divisible": 0, "to": "megatron"}, "--make-vocab-size-divisible-by", "from 1"),
        ({"dtype": "fp8"}, "--dtype", "bfloat16"),
        ({"dtype": torch.int64}, "--dtype", "bfloat16"),
        ({"format": "pt"}, "--format", "safetensors"),
        ({"format": "ckpt"}, "--format", "bin"),
        ({"format": "bin", "to": "mindformers"}, "--format", "ckpt"),
        ({"max_shard_size": "much"}, "--max-shard-size", "5GB"),
        ({"max_shard_size": 0}, "--max-shard-size", "bytes"),
        ({"drop": 5}, "--drop", "text"),
        ({"to": "megatrom"}, "megatrom", "megatron"),
        ({"drops": ["x"]}, "drops", "--drop"),
        ({"layers_per_stage": (3, 5)}, "--layers-per-stage", "megatron"),
        ({"noop_layers": "x", "to": "megatron"}, "--noop-layers", "3,5"),
        ({"like": "run", "to": "hf"}, "--like", "megatron"),
        ({"copy_code": True, "to": "megatron"}, "--copy-code", "hf"),
        ({"tokenizer": "x", "to": "torch_dist"}, "--tokenizer", "hf"),
        ({"max_shard_size": "1GB", "to": "megatron"}, "--max-shard-size", "hf"),
        ({"lora": "adapter", "to": "dcp"}, "--lora adapter", "--to hf"),
        ({"lora": "merge", "to": "megatron"}, "--lora merge", "--to hf"),
        ({"adapter": "x", "to": "mindformers"}, "adapters", "--to hf"),
        ({"assets": "no"}, "--no-assets", "True"),
        ({"iteration": 3, "step": 4}, "iteration", "one"),
    ],
    ids=str,
)
def test_what_is_not_right_is_named_with_the_nearest_right_one(
    fields: dict[str, Any], naming: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        request_of(fields)
    assert naming in caught.value.message
    assert hint in f"{caught.value.message} {caught.value.hint}"


def test_only_what_would_be_right_is_near() -> None:
    for wrong, near in (("int8", ""), ("bfloat17", " (bfloat16?)"), ("float8_e4m3fn", " (float32?)")):
        with pytest.raises(UsageError) as found:
            request_of({"to": "hf", "dtype": wrong})
        assert found.value.hint == f"give one of keep, float32, bfloat16, float16{near}"


def test_the_same_by_other_words() -> None:
    for dtype in ("bf16", "bfloat16", "torch.bfloat16", torch.bfloat16):
        assert request_of({"dtype": dtype}).dtype == "bfloat16"
    for wide in ("fp32", torch.float32, np.float32, np.dtype("float32"), "float"):
        assert request_of({"dtype": wide}).dtype == "float32"
    for size in (300_000, "300000", "300KB"):
        assert request_of({"max_shard_size": size}).writing.max_shard_size == 300_000
    for fields in ({"sizes": {"tp": 2}}, {"sizes": {"tp": "2"}}, {"tp": 2}, {"tp": "2"}):
        assert request_of({"to": "megatron", **fields}).writing.tp == 2
    for fields in ({"source_sizes": {"tp": 2}}, {"source_tp": 2}, {"tp": 2}):
        assert request_of({"to": "hf", **fields}).reading == {"tp": 2}
    for name in ("step", "iteration", "tag"):
        assert request_of({name: 7}).reading == {"step": "7"}
    assert request_of({"layers_per_stage": "3,5", "to": "megatron"}).writing.layers_per_stage == (3, 5)


@pytest.mark.parametrize(
    ("flag", "owner"),
    [
        (("--tp", "2"), "megatron"),
        (("--vpp", "2"), "megatron"),
        (("--source-tp", "2"), "megatron"),
        (("--strategy", "x"), "mindspore"),
        (("--qkv-layout", "grouped"), "mindspore"),
        (("--yaml", "x"), "mindspore"),
        (("--check",), "mindspore"),
    ],
    ids=str,
)
def test_a_flag_that_says_nothing_about_the_source(flag: tuple[str, ...], owner: str, tmp_path: Path) -> None:
    found = command("convert", DEMO, tmp_path / "out", "--to", "hf", *flag)
    assert found.code == 2
    assert flag[0].replace("--source-", "--") in found.err and owner in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flag",
    [("--like", "x"), ("--dialect", "legacy"), ("--experts", "grouped"), ("--schedule", "dualpipev")],
    ids=str,
)
def test_a_flag_that_says_nothing_to_the_target(flag: tuple[str, ...], tmp_path: Path) -> None:
    found = command("convert", DEMO, tmp_path / "out", "--to", "hf", *flag)
    assert found.code == 2
    assert flag[0] in found.err and "--to megatron" in found.err


@pytest.mark.parametrize(
    "fields",
    [{"workers": -1}, {"workers": 10**9}, {"max_memory": "much"}, {"engine": "rey"}, {"nothing": 1}],
    ids=str,
)
def test_the_python_api_checks_as_well(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        ckptconv.convert(DEMO, tmp_path / "out", **fields)


def test_a_model_has_the_targets_names() -> None:
    model = ckptconv.open(DEMO)
    assert "model.norm.weight" in model.to("hf")
    ranks = model.to("megatron", tp=2)
    assert any(name.startswith("mp_rank_01:") for name in ranks)
    name = next(n for n in ranks if n.startswith("mp_rank_00:") and n.endswith("final_layernorm.weight"))
    assert np.array_equal(ranks.read(name), model.read("model.norm.weight"))
    with pytest.raises(UsageError, match="open"):
        model.to("hf", weights="model")
