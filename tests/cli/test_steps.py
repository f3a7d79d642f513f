"""Several steps of a run are converted by one command, and those of a run that goes on as they come."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptconv.api.watched import Watched
from running import ckptconv, fails, start, succeeds

FLAGS = ("--to", "hf", "--no-assets")


def save(run: Path, step: int) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "training_args.bin").write_bytes(b"x")
    save_file({"a.weight": torch.full((2, 3), float(step))}, folder / "model.safetensors")
    (folder / "trainer_state.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (5, 10, 15, 20):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def written(out: Path) -> dict[str, float]:
    files = sorted(out.glob("*/model.safetensors"))
    return {f.parent.name: float(load_file(f)["a.weight"][0, 0]) for f in files}


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("all", (5, 10, 15, 20)),
        ("newest", (20,)),
        ("last:2", (15, 20)),
        ("5,checkpoint-15", (5, 15)),
        ("10", (10,)),
    ],
)
def test_each_into_a_folder_of_its_own(
    run: Path, tmp_path: Path, which: str, expected: tuple[int, ...]
) -> None:
    succeeds("convert", run, tmp_path / "out", *FLAGS, "--steps", which)
    assert written(tmp_path / "out") == {f"step-{n}": n for n in expected}


def test_one_that_fails_does_not_stop_the_rest(run: Path, tmp_path: Path) -> None:
    (run / "checkpoint-10" / "trainer_state.json").unlink()
    save_file({"a.weight": torch.ones(2), "b": torch.ones(2)}, run / "checkpoint-15" / "model.safetensors")
    flags = ("--keep", "a.*", "--rename", tmp_path / "rules")
    (tmp_path / "rules").write_text("a.weight = b\n")
    result = ckptconv("convert", run, tmp_path / "out", *FLAGS, *flags, "--steps", "all")
    assert result.code == 1
    assert "checkpoint-10 is not complete" in result.err and result.err.count("error:") == 1
    assert sorted(p.parent.name for p in (tmp_path / "out").glob("*/*.safetensors")) == [
        "step-15",
        "step-20",
        "step-5",
    ]


def test_the_exit_code_is_that_of_the_failures(run: Path, tmp_path: Path) -> None:
    flags = ("--steps", "5,10", "--keep", "none*")
    assert ckptconv("convert", run, tmp_path / "out", *FLAGS, *flags).code == 2
    out = tmp_path / "out2"
    (run / "checkpoint-5" / "model.safetensors").write_bytes(b"")
    result = ckptconv("convert", run, out, *FLAGS, "--steps", "all", "--json")
    found = json.loads(result.out)
    assert result.code == 1 and [s["step"] for s in found["steps"]] == [5, 10, 15, 20]
    assert found["steps"][0]["error"]["exit_code"] == 1 and "error" not in found["steps"][1]
    assert found["steps"][1]["out"] == str(out / "step-10") and found["steps"][1]["tensors"] == 1


def test_a_step_that_is_not_there_is_said_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fails(2, "convert", run, out, *FLAGS, "--steps", "5,7", naming=("no step 7", "5"))
    fails(2, "convert", run, out, *FLAGS, "--steps", "last:no", naming=("last:5",))
    fails(2, "convert", run, out, *FLAGS, "--steps", "all", "--step", 5, naming=("--steps",))
    assert not out.exists()


def test_resumed_what_is_done_is_done(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeeds("convert", run, out, *FLAGS, "--steps", "5,10")
    assert ckptconv("convert", run, out, *FLAGS, "--steps", "all").code == 1
    shutil.rmtree(out / "step-10")
    succeeds("convert", run, out, *FLAGS, "--steps", "all", "--resume")
    assert written(out) == {"step-5": 5, "step-10": 10, "step-15": 15, "step-20": 20}


def eventually(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_goes_on_is_watched_until_ctrl_c(tmp_path: Path, number: int) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    save(run, 5)
    process = start("convert", run, out, *FLAGS, "--watch", "--json")
    try:
        eventually(lambda: "step-5" in written(out))
        folder = save(run, 10)
        state = folder / "trainer_state.json"
        state.unlink()  # the model is there, and the save is not over
        time.sleep(4)
        assert "step-10" not in written(out)
        state.write_text("{}")
        eventually(lambda: "step-10" in written(out))
        assert process.poll() is None
        os.kill(process.pid, number)
        shown, err = process.communicate(timeout=30)
        assert process.returncode == 0, err.decode()
    finally:
        process.kill()
    assert [json.loads(line)["step"] for line in shown.decode().splitlines()] == [5, 10]


def test_what_is_ready(run: Path) -> None:
    watched = Watched(run)
    assert watched.ready() == []  # new files may still be written to
    ready = watched.ready()
    assert [s.step for s in ready] == [5, 10, 15, 20]
    watched.done(ready[0])
    watched.failed(ready[1])
    assert [s.step for s in watched.ready()] == [15, 20]
    with open(run / "checkpoint-10" / "trainer_state.json", "a") as file:
        file.write(" ")
    assert [s.step for s in watched.ready()] == [15, 20]
    assert [s.step for s in watched.ready()] == [10, 15, 20]
    watched.pass_over()
    save(run, 25)
    watched.ready()
    assert [s.step for s in watched.ready()] == [25]


def test_two_saves_of_one_step_go_into_folders_of_their_own(tmp_path: Path) -> None:
    """NeMo 2 saves the last step twice; epochs may count their steps anew."""
    run = tmp_path / "run"
    for name in ("m--loss=2.1-step=9", "m--loss=2.1-step=9-last", "epoch_1_step_5", "epoch_2_step_5"):
        (run / name).mkdir(parents=True)
        save_file({"a.weight": torch.full((1, 1), 1.0)}, run / name / "model.safetensors")
    fails(2, "inspect", run, "--step", 5, naming=("epoch_1_step_5, epoch_2_step_5",))
    succeeds("inspect", run, "--step", 9)
    succeeds("convert", run, tmp_path / "out", *FLAGS, "--steps", "all")
    expected = {"step-9", "m--loss=2.1-step=9-last", "epoch_1_step_5", "epoch_2_step_5"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == expected


def test_a_run_behind_a_url(tmp_path: Path, run: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(run), "/steps-of-a-run", recursive=True)
    try:
        url = "memory://steps-of-a-run"
        found = json.loads(succeeds("ls", url, "--json").out)
        assert [s["step"] for s in found["steps"]] == [5, 10, 15, 20]
        assert all(s["complete"] and s["bytes"] > 50 for s in found["steps"])
        succeeds("convert", url, tmp_path / "out", *FLAGS, "--steps", "last:2")
        assert written(tmp_path / "out") == {"step-15": 15, "step-20": 20}
        fails(2, "inspect", url, "--step", "7", naming=("the nearest",))
    finally:
        memory.rm("/steps-of-a-run", recursive=True)
