"""`inspect` says where one is: architecture, config, tokenizer, steps, and the command that converts it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import ckptconv
from megatron_layouts import tensors_of, write_model
from running import succeeds

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


def test_the_steps_of_a_run(demo_run: Path, tmp_path: Path) -> None:
    for step in (2, 10):
        shutil.copytree(demo_run, tmp_path / "run" / f"checkpoint-{step}")
    said = json.loads(succeeds("inspect", tmp_path / "run", "--json").out)["outlook"]
    assert said["steps"] == [2, 10]
