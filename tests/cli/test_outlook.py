"""`inspect` says where one is: architecture, config, tokenizer, steps, and the command that converts it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import ckptconv
from megatron_layouts import tensors_of, write_model
from running import case_run, succeeds

CONFIG = {
    "model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_act": "silu",
    "initializer_range": 0.02,
}  # fmt: skip


def _next(path: Path) -> list[str]:
    said = json.loads(succeeds("inspect", path, "--json").out)["outlook"]
    return shlex.split(said["command"])


def test_the_command_it_names_works(demo_run: Path, tmp_path: Path) -> None:
    program, *words = _next(demo_run)
    assert program == "ckptconv"
    succeeds(*[str(tmp_path / "out") if word == "OUT" else word for word in words])
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_megatron_run_and_the_model_it_becomes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", CONFIG, tensors_of(CONFIG))
    ckptconv.convert(model, tmp_path / "a run", to="megatron", tp=2)
    shown = succeeds("inspect", tmp_path / "a run").out
    assert "llama" in shown and "the training arguments" in shown
    for source, out in ((tmp_path / "a run", "merged"), (model, "ranks")):
        _, *words = _next(source)
        succeeds(*[str(tmp_path / out) if word == "OUT" else word for word in words])


def test_without_a_config_it_says_what_to_give(demo_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "checkpoint-2"
    shutil.copytree(demo_run, run)
    for name in ("config.json", "generation_config.json"):
        (run / name).unlink(missing_ok=True)
    shown = succeeds("inspect", run).out
    assert "no config.json" in shown
    assert "--config DIR_OR_HUB_ID" in shown


def test_adapters_are_seen_and_the_command_says_what_becomes_of_them(tmp_path: Path) -> None:
    run = case_run("llama_z3_bf16_ws2_lora", tmp_path / "run")
    assert "adapters of 4 weights" in succeeds("inspect", run).out
    _, *words = _next(run)
    assert words[-4:] == ["--lora", "merge", "--lora-alpha", "ALPHA"]  # nothing here says it
    succeeds(*[{"OUT": str(tmp_path / "out"), "ALPHA": "16"}.get(word, word) for word in words])
    assert json.loads(succeeds("inspect", tmp_path / "out", "--json").out)["outlook"]["adapters"] == 0
    succeeds("convert", run, tmp_path / "peft", "--to", "hf", "--lora", "adapter", "--lora-alpha", 16)
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    base = tmp_path / "the base"
    (tmp_path / "peft" / "adapter_config.json").write_text(
        json.dumps({**said, "base_model_name_or_path": str(base)})
    )
    assert _next(tmp_path / "peft") == [
        *("ckptconv", "convert", str(base), "OUT", "--to", "hf", "--adapter", str(tmp_path / "peft"))
    ]
    found = ckptconv.inspect(run)
    assert found.adapters == 4 and found.rows()["LoRA"] == "adapters of 4 weights"


def test_the_steps_of_a_run(demo_run: Path, tmp_path: Path) -> None:
    for step in (2, 10):
        shutil.copytree(demo_run, tmp_path / "run" / f"checkpoint-{step}")
    said = json.loads(succeeds("inspect", tmp_path / "run", "--json").out)["outlook"]
    assert said["steps"] == [2, 10]
