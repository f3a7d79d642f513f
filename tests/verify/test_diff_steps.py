"""A comparison takes the steps that are named, of each side that has several."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptconv
from running import ckptconv as run_command
from running import fails, succeeds


def weights(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True)
    save_file({"a.weight": torch.full((2, 3), value)}, folder / "model.safetensors")
    return folder


def run(folder: Path, *steps: int) -> Path:
    for step in steps:
        save = weights(folder / f"checkpoint-{step}", step)
        (save / "trainer_state.json").write_text("{}")
    return folder


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return run(tmp_path / "one", 100, 200, 300)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return run(tmp_path / "other", 100, 400)


def compared(*words: object) -> dict[str, Any]:
    result = run_command("diff", *words, "--json")
    assert result.code in (0, 3), result.err
    return dict(json.loads(result.out))


def test_a_step_of_a_run_against_a_model(one: Path, tmp_path: Path) -> None:
    model = weights(tmp_path / "model", 100)
    for sides in ((one, model), (model, one)):
        assert compared(*sides, "--step", 100)["ok"]
        assert compared(*sides, "--tag", "checkpoint-100")["ok"]
        assert not compared(*sides)["ok"] and not compared(*sides, "--iteration", 200)["ok"]
    found = compared(one, model, "--step", 100)
    assert Path(found["a"]).parent.name == "checkpoint-100" and found["b"] == str(model)


def test_two_steps_of_one_run(one: Path) -> None:
    assert compared(one, one)["ok"] and compared(one, one, "--step", 100)["ok"]
    found = compared(one, one, "--step", 100, "--step-b", 200)
    assert [Path(found[side]).parent.name for side in "ab"] == ["checkpoint-100", "checkpoint-200"]
    assert found["tensors"][0]["largest"] == 100
    assert compared(one, one, "--step-b", 200)["tensors"][0]["largest"] == 100  # A is the newest
    assert compared(one / "checkpoint-200", one, "--step", 200)["ok"]  # what is a save has no steps


def test_one_step_of_two_runs(one: Path, other: Path) -> None:
    assert compared(one, other, "--step", 100)["ok"] and not compared(one, other)["ok"]
    fails(2, "diff", one, other, "--step", 300, naming=("there is no step 300", "steps here: checkpoint-100"))
    assert compared(one, other, "--step", 300, "--step-b", 400)["tensors"][0]["largest"] == 100
    fails(2, "diff", one, other, "--step-b", 300, naming=("there is no step 300",))


def test_a_run_may_be_called_as_a_save_is(one: Path, tmp_path: Path) -> None:
    other = run(tmp_path / "llama-step10", 100, 400)
    assert compared(one, other, "--step", 100)["ok"] and not compared(one, other)["ok"]


def test_where_neither_is_a_run(one: Path, tmp_path: Path) -> None:
    models = weights(tmp_path / "model", 100), weights(tmp_path / "model2", 100)
    fails(2, "diff", *models, "--step", 100, naming=("there is no step 100",))


def test_in_python_and_in_the_report(one: Path, tmp_path: Path) -> None:
    assert ckptconv.diff(one, one, step=200, step_b="checkpoint-200").ok
    found = ckptconv.diff(one, one, step=100, step_b=300)
    assert found.tensors[0].largest == 200
    page = tmp_path / "page.html"
    assert run_command("diff", one, one, "--step", 100, "--step-b", 200, "--report", page).code == 3
    text = page.read_text()
    assert re.search(r"checkpoint-100\b", text) and re.search(r"checkpoint-200\b", text)
    assert "checkpoint-300" not in text
    succeeds("diff", one, one, "--step", 100, "--quiet")
