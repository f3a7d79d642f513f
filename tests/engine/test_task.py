"""A task writes the same bytes whenever, however often and beside whomever it runs, also late."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptconv.api.convert import plan as plan_of
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.journal import Journal
from ckptconv.engine.ledger import Ledger
from ckptconv.engine.options import DIGEST_BLOCK, Options
from ckptconv.engine.run import run
from ckptconv.engine.sink import PartFile, create
from ckptconv.engine.sums import seal
from ckptconv.engine.task import Opened, Result, Task, steps, tasks_of
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import Plan


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    """One file of three blocks and a bit, whose tensors end in the middle of blocks."""
    path = tmp_path_factory.mktemp("source") / "model.pt"
    values = torch.arange(1_500_000, dtype=torch.float32)
    torch.save({"a": values, "b": values[:777_777] + 1, "c": values[:1_000_001] * 2}, path)
    yield plan_of(path, to="hf", assets=False, format=request.param)


class Work:
    """Carry out tasks of the plan's one file by hand."""

    def __init__(self, plan: Plan, folder: Path, sources: SourceFiles) -> None:
        self.layout, self.name = plan.files[0].layout, plan.files[0].name
        self.folder = folder
        self.filler = Filler(plan, plan.files[0], sources, pairs_by_tensor(plan.relation))

    def do(self, task: Task, *, tile: int = 1 << 20) -> Result:
        sink = PartFile(self.folder, self.name)
        opened = Opened(self.layout, self.filler, sink)
        (result,) = filter(None, steps(task, opened, Buffers(), tile=tile))
        sink.finish()
        return result


def test_tasks_done_twice_and_at_once_give_the_file(plan: Plan, tmp_path: Path) -> None:
    whole = run(plan, tmp_path / "whole", Options())
    out = tmp_path / "out"
    name, layout = plan.files[0].name, plan.files[0].layout
    create(out / (name + ".part"), layout.size)
    with SourceFiles(plan.inputs) as sources, Journal(out, "plan", resume=False) as journal:
        work = Work(plan, out, sources)
        ledger = Ledger(plan, out, journal, lambda event: None)
        ledger.open(0)
        tasks = list(tasks_of(0, layout.size, 2))
        assert [t.span(layout.size)[0] for t in tasks] == [0, 2 * DIGEST_BLOCK]
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(work.do, [*tasks, *tasks]))
        assert results[: len(tasks)] == results[len(tasks) :]
        last = [ledger.took(r) for r in reversed(results[: len(tasks)])]
        assert last == [False, True]
        sink = PartFile(out, name)
        if layout.needs_crc:
            seal(layout, ledger.crcs(0), sink)
        sink.finish()
        ledger.whole(0)
        assert journal.done == whole.files
        written = (out / (name + ".part")).read_bytes()
        assert written == (tmp_path / "whole" / name).read_bytes()
        # One that was thought lost, and ends when the file is long sealed.
        for task in tasks:
            work.do(task, tile=1 << 16)
        assert (out / (name + ".part")).read_bytes() == written


def test_a_task_can_be_left_between_tiles(plan: Plan, tmp_path: Path) -> None:
    name, layout = plan.files[0].name, plan.files[0].layout
    create(tmp_path / (name + ".part"), layout.size)
    with SourceFiles(plan.inputs) as sources:
        work = Work(plan, tmp_path, sources)
        sink = PartFile(tmp_path, name)
        run = steps(Task(0, 0, 3), Opened(layout, work.filler, sink), Buffers(), tile=1 << 20)
        assert [next(run), next(run)] == [None, None]
        sink.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_many_small_tensors_are_read_and_written_in_long_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    """What a tile of a thousand tensors costs is not a thousand calls of the system."""
    source, out = tmp_path / "model.safetensors", tmp_path / "out"
    save_file({f"t{i:04}": torch.full((128, 8), i, dtype=torch.float32) for i in range(3000)}, source)
    calls = {"pwrite": 0, "preadv": 0}

    def counted(name: str, call: Callable[..., int]) -> Callable[..., int]:
        def count(*args: object) -> int:
            calls[name] += 1
            return call(*args)

        return count

    plan = plan_of(source, to="hf", assets=False, format=container)
    for name in calls:
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    run(plan, out, Options(workers=1))
    monkeypatch.undo()
    written = plan.bytes_out
    assert calls["pwrite"] < 30 + 2 * written // (256 << 10)
    assert calls["preadv"] < (30 if container == "safetensors" else 3030)
    (made,) = out.glob("*.bin" if container == "bin" else "*.safetensors")
    loaded = torch.load(made, weights_only=True) if container == "bin" else load_file(made)
    assert all((loaded[f"t{i:04}"] == i).all() for i in range(3000))


def test_an_old_part_is_not_written_over(plan: Plan, tmp_path: Path) -> None:
    """Whoever still has it open writes into a file that nobody will see."""
    path = tmp_path / "x.part"
    create(path, 10)
    old = PartFile(tmp_path, "x")
    create(path, 10)
    old.write(b"late", 0)
    old.close()
    assert path.read_bytes() == bytes(10)
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    path.unlink()
    path.symlink_to(victim)
    create(path, 10)
    assert victim.read_bytes() == b"kept" and not path.is_symlink()


def test_an_empty_file_is_one_task(plan: Plan) -> None:
    assert list(tasks_of(3, 0, 8)) == [Task(3, 0, 1)]
    assert Task(3, 0, 1).span(0) == (0, 0)
