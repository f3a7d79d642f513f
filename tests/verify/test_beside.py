"""All that decides the model is compared: config, tokenizer, templates, and what loaders prefer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptconv
from ckptconv.api.verify import verify_roundtrip
from ckptconv.verify.certificate import NAME, check
from running import CASES, DEMO, succeeds
from running import ckptconv as command

TIED = CASES / "qwen2tied_z2_bf16_ws2"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    ckptconv.convert(DEMO, tmp_path / "out", dtype="bfloat16")
    return tmp_path / "out"


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    def apply(out: Path) -> None:
        content = json.loads((out / name).read_text())
        left = {k: v for k, v in {**content, **fields}.items() if v != "gone"}
        (out / name).write_text(json.dumps(left))

    return apply


def put(name: str, text: str = "{}") -> Callable[[Path], None]:
    def apply(out: Path) -> None:
        (out / name).write_text(text)

    return apply


@pytest.mark.parametrize(
    ("spoil", "naming"),
    [
        (change("config.json", rope_theta=12345.0), "rope_theta"),
        (change("config.json", rms_norm_eps=0.1), "rms_norm_eps"),
        (change("config.json", hidden_act="gelu"), "hidden_act"),
        (change("config.json", rope_scaling={"rope_type": "linear", "factor": 2.0}), "rope_scaling"),
        (change("config.json", architectures=["Other"]), "architectures"),
        (change("config.json", auto_map={"AutoModel": "modeling_x.X"}), "auto_map"),
        (change("config.json", transformers_weights="other.safetensors"), "transformers_weights"),
        (change("config.json", quantization_config={"quant_method": "fp8"}), "quantization_config"),
        (change("config.json", sliding_window=8), "sliding_window"),
        (change("generation_config.json", temperature=3.0), "temperature"),
        (change("generation_config.json", eos_token_id=9), "eos_token_id"),
        (put("chat_template.json"), "chat_template.json"),
        (put("adapter_config.json"), "adapter_config.json"),
        (put("quantize_config.json"), "quantize_config.json"),
        (lambda out: (out / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
        (change("tokenizer_config.json", eos_token="x"), "eos_token"),
        (lambda out: shutil.copy(out / "model.safetensors", out / "consolidated.safetensors"), "consol"),
    ],
)
def test_a_field_or_file_that_decides(out: Path, spoil: Callable[[Path], None], naming: str) -> None:
    assert verify_roundtrip(DEMO, out).ok
    spoil(out)
    found = verify_roundtrip(DEMO, out).mismatches
    assert any(m.kind == "asset" and naming in f"{m.tensor} {m.text}" for m in found), found
    assert command("verify-roundtrip", DEMO, out).code == 3


@pytest.mark.parametrize(
    "harmless",
    [
        change("config.json", use_cache=False, transformers_version="9", attention_dropout=0.5),
        change("config.json", attention_bias=False),
        put("README.md", "text"),
    ],
)
def test_what_decides_nothing(out: Path, harmless: Callable[[Path], None]) -> None:
    harmless(out)
    assert verify_roundtrip(DEMO, out).ok


def test_a_source_without_a_config_leaves_a_warning(tmp_path: Path) -> None:
    bare = tmp_path / "ckpt"
    shutil.copytree(TIED / "ckpt", bare)
    for path in bare.rglob("*.json"):
        path.unlink()
    ckptconv.convert(bare, tmp_path / "out", config=str(TIED))
    found = verify_roundtrip(bare, tmp_path / "out")
    assert found.ok and any("were not compared" in text for _, text in found.notes)
    assert not verify_roundtrip(bare, tmp_path / "out", config=str(TIED)).mismatches


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("consolidated.safetensors", True),
        ("adapter_config.json", True),
        ("adapter_model.safetensors", True),
        ("chat_template.json", True),
        ("modeling_other.py", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", False),
        ("README.md", False),
    ],
)
def test_check_finds_what_loaders_prefer(out: Path, name: str, wrong: bool) -> None:
    assert verify_roundtrip(DEMO, out, certify=True).ok
    (out / name).write_text("{}")
    found = check(out)
    assert (name in found.wrong) is wrong and found.ok is not wrong
    if not wrong:
        assert found.extra == (name,)


def test_the_certificate_names_what_the_plan_wrote(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    assert verify_roundtrip(DEMO, out, certify=True).ok
    named = json.loads((out / NAME).read_text())["files"]
    assert "notes.txt" not in named and {"model.safetensors", "config.json", "tokenizer.json"} <= named.keys()


def test_a_config_that_names_other_weights_is_not_carried_through(tmp_path: Path) -> None:
    run = shutil.copytree(DEMO, tmp_path / "run")
    change("config.json", transformers_weights="elsewhere.safetensors")(run)
    result = succeeds("deepspeed-to-hf", run, tmp_path / "out")
    assert "transformers_weights" in result.out
    assert "transformers_weights" not in json.loads((tmp_path / "out" / "config.json").read_text())
