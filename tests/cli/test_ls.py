"""A run is listed whatever wrote it, and one option names a step of it; one exit code if it is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

import ckptconv
from mindspore_runs import Layout, save
from running import DEMO, case_run, fails, succeeds

NET = {"a.weight": torch.arange(6.0).reshape(2, 3)}
STAGE_2 = "llama_z2_bf16_ws2_clientstate"


def listed(run: Path) -> dict[str, Any]:
    found = json.loads(succeeds("ls", run, "--json").out)
    assert found["schema_version"] == 1
    return dict(found)


def steps(run: Path) -> list[tuple[int | None, str, bool]]:
    return [(s["step"], s["name"], s["complete"]) for s in listed(run)["steps"]]


def trainer(run: Path, *numbers: int) -> Path:
    for n in numbers:
        folder = run / f"checkpoint-{n}"
        folder.mkdir(parents=True)
        save_file({"a.weight": NET["a.weight"] + n}, folder / "model.safetensors")
        (folder / "training_args.bin").write_bytes(b"x")
        (folder / "trainer_state.json").write_text("{}")
    return run


def deepspeed(run: Path) -> Path:
    case_run(STAGE_2, run)
    shutil.copytree(run / "global_step2", run / "global_step10")
    shutil.copytree(run / "global_step2", run / "best")
    (run / "latest").write_text("global_step10")
    return run


def distributed(run: Path, *numbers: int) -> Path:
    for n in numbers:
        dcp.save(dict(NET), checkpoint_id=run / "checkpoint" / f"step-{n}", no_dist=True)
    return run


def megatron(run: Path) -> Path:
    for n in (5, 10):
        for rank in ("mp_rank_00", "mp_rank_01"):
            folder = run / f"iter_{n:07d}" / rank
            folder.mkdir(parents=True)
            torch.save({"model": {}}, folder / "model_optim_rng.pt")
    (run / "latest_checkpointed_iteration.txt").write_text("10")
    return run


def verl(run: Path) -> Path:
    for n in (10, 20):
        folder = run / f"global_step_{n}" / "actor"
        folder.mkdir(parents=True)
        for rank in range(2):
            torch.save(dict(NET), folder / f"model_world_size_2_rank_{rank}.pt")
    (run / "latest_checkpointed_iteration.txt").write_text("20")
    return run


def torchtune(run: Path) -> Path:
    for n in (0, 1):
        (run / f"epoch_{n}").mkdir(parents=True)
        torch.save(dict(NET), run / f"epoch_{n}" / "model-00001-of-00001.bin")
    (run / "recipe_state").mkdir()
    return run


def lightning(run: Path) -> Path:
    run.mkdir()
    for epoch, step in ((0, 9), (0, 10), (1, 20)):
        torch.save({"state_dict": NET}, run / f"epoch={epoch}-step={step}.ckpt")
    return run


def nemo(run: Path) -> Path:
    for n in (9, 10):
        dcp.save(
            dict(NET), checkpoint_id=run / f"m--val_loss=2.15-step={n}-consumed_samples=80.0" / "weights"
        )
    return run


def mindformers(run: Path) -> Path:
    w = torch.arange(8.0).reshape(4, 2).numpy()
    save(run, [{"w": Layout([2], [0, -1])}], {"w": w}, saves=("1_9", "1_10"))
    return run


RUNS = {
    "trainer": (lambda run: trainer(run, 5, 10), [5, 10]),
    "deepspeed": (deepspeed, [None, 2, 10]),
    "dcp": (lambda run: distributed(run, 9, 10), [9, 10]),
    "megatron": (megatron, [5, 10]),
    "verl": (verl, [10, 20]),
    "torchtune": (torchtune, [0, 1]),
    "lightning": (lightning, [9, 10, 20]),
    "nemo": (nemo, [9, 10]),
    "mindformers": (mindformers, [9, 10]),
}


@pytest.mark.parametrize("kind", RUNS)
def test_every_save_is_listed_newest_last(kind: str, tmp_path: Path) -> None:
    make, expected = RUNS[kind]
    run = make(tmp_path / "run")
    assert [step for step, _, _ in steps(run)] == expected
    assert all(complete for _, _, complete in steps(run))
    shown = succeeds("ls", run).out
    assert "next  ckptconv" in shown and all(s["name"] in shown for s in listed(run)["steps"])


@pytest.mark.parametrize("kind", RUNS)
def test_a_step_that_is_not_there_is_a_usage_error_that_names_near_ones(kind: str, tmp_path: Path) -> None:
    make, expected = RUNS[kind]
    run = make(tmp_path / "run")
    fails(2, "inspect", run, "--step", 7, naming=("no step 7", "the nearest:", str(expected[-1])))
    fails(2, "convert", run, tmp_path / "out", "--to", "hf", "--step", "none", naming=("no step none",))


@pytest.mark.parametrize("kind", [k for k in RUNS if k != "megatron"])
def test_every_listed_save_is_read_by_its_step_and_by_its_name(kind: str, tmp_path: Path) -> None:
    run = RUNS[kind][0](tmp_path / "run")
    for s in ckptconv.ls(run).steps:
        names = list(ckptconv.open(run, step=s.name))
        assert names
        if s.step is not None:
            assert list(ckptconv.open(run, step=s.step)) == names


def test_the_step_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", 5, 10, 100)
    for n in (5, 10, 100):
        succeeds("convert", run, tmp_path / str(n), "--to", "hf", "--no-assets", "--step", n)
        assert load_file(tmp_path / str(n) / "model.safetensors")["a.weight"][0, 0] == n


def test_the_next_command_is_one_that_can_be_typed(tmp_path: Path) -> None:
    run = deepspeed(tmp_path / "run")
    words = listed(run)["command"].replace("OUT", str(tmp_path / "out")).split()[1:]
    succeeds(*words)
    assert (tmp_path / "out" / "model.safetensors").is_file() and words[-2:] == ["--step", "10"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def lacking(run: Path) -> dict[str, str]:
    return {s["name"]: s["lacking"] for s in listed(run)["steps"] if not s["complete"]}


def test_what_a_half_written_save_lacks_is_said(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", 5, 10, 15, 20)
    (run / "checkpoint-10" / "trainer_state.json").unlink()
    cut(run / "checkpoint-15" / "model.safetensors")
    (run / "checkpoint-25").mkdir()
    found = lacking(run)
    assert list(found) == ["checkpoint-10", "checkpoint-15", "checkpoint-25"]
    assert "trainer_state.json" in found["checkpoint-10"] and "cut off" in found["checkpoint-15"]
    assert "no weights" in found["checkpoint-25"] and "--step 20" in listed(run)["command"]
    assert "not complete" in succeeds("ls", run).out
    assert ckptconv.ls(run).newest == ckptconv.ls(run).steps[3]


def test_ranks_and_marks_of_megatron(tmp_path: Path) -> None:
    run = megatron(tmp_path / "run")
    (run / "latest_checkpointed_iteration.txt").write_text("5")
    assert "names 5" in lacking(run)["iter_0000010"]
    (run / "latest_checkpointed_iteration.txt").write_text("10")
    (run / "iter_0000005" / "mp_rank_00" / "model_optim_rng.pt").unlink()
    cut(run / "iter_0000010" / "mp_rank_01" / "model_optim_rng.pt")
    found = lacking(run)
    assert "mp_rank_00" in found["iter_0000005"] and "cut off" in found["iter_0000010"]


def test_marks_and_parts_of_other_formats(tmp_path: Path) -> None:
    run = deepspeed(tmp_path / "ds")
    shutil.copytree(run / "global_step2", run / "global_step20")
    next((run / "global_step2").glob("*zero_pp_rank_0*")).unlink()
    found = lacking(run)
    assert "latest" in found["global_step20"] and "rank 0" in found["global_step2"]
    run = distributed(tmp_path / "dcp", 9, 10)
    (run / "checkpoint" / "step-10" / ".metadata").unlink()
    next((run / "checkpoint" / "step-9").glob("*.distcp")).unlink()
    found = lacking(run)
    assert ".metadata" in found["step-10"] and "files are not there" in found["step-9"]
    run = nemo(tmp_path / "nemo")
    newest = max(run.iterdir(), key=lambda p: len(p.name))
    newest.with_name(newest.name + "-unfinished").touch()
    assert list(lacking(run)) == [newest.name]
    run = mindformers(tmp_path / "ms")
    next(run.glob("checkpoint/rank_1/*-1_10.*")).unlink()
    assert "rank 1" in lacking(run)["1_10"]


def test_one_save_and_no_save(tmp_path: Path) -> None:
    assert len(steps(DEMO)) == 1
    model = tmp_path / "model"
    model.mkdir()
    fails(1, "ls", model, naming=("no save",))
    save_file(NET, model / "model.safetensors")
    assert steps(model) == [(None, "model", True)]
    fails(1, "ls", tmp_path / "nowhere", naming=("no such",))


def test_several_runs_are_not_chosen_between(tmp_path: Path) -> None:
    trainer(tmp_path / "v0", 5)
    trainer(tmp_path / "v1", 5)
    fails(2, "ls", tmp_path, naming=("v0", "v1"))


def test_from_python(tmp_path: Path) -> None:
    found = ckptconv.ls(trainer(tmp_path / "run", 5, 10))
    assert found.newest is not None and found.newest.step == 10 and found.steps[0].bytes > 0
