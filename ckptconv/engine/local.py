"""Carry out tasks on a few threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ckptconv.engine.abreast import HELD, Group, abreast, grouped, tile_abreast
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.expect import needed
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.flush import WriteBehind
from ckptconv.engine.ledger import Ledger
from ckptconv.engine.options import Options, default_workers, tile_bytes
from ckptconv.engine.sink import PartFile, Sink, create
from ckptconv.engine.task import Result, Task, seal, steps, tasks_of
from ckptconv.engine.threads import on_threads
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import OutFile, Plan

__all__ = ["Outputs", "run_locally"]


@dataclass(frozen=True, slots=True)
class _Open:
    """A file being written."""

    filler: Filler
    sink: Sink


@dataclass(frozen=True, slots=True)
class _Job:
    """Tasks of files that are made abreast, and what of the source these share."""

    tasks: list[Task]
    shared: set[str]


class Outputs(Protocol):
    """Open the files of a run."""

    def open(self, file: OutFile) -> Sink:
        """Begin a file."""

    def blocks(self, file: OutFile) -> int:
        """Return how many blocks of a file make a task."""


class _Disk:
    """Write into the output folder."""

    def __init__(self, folder: Path, behind: WriteBehind) -> None:
        self._folder, self._behind = folder, behind

    def open(self, file: OutFile) -> Sink:
        create(self._folder / (file.name + ".part"), file.layout.size)
        return PartFile(self._folder, file.name, self._behind)

    def blocks(self, file: OutFile) -> int:
        return 1


def run_locally(
    plan: Plan,
    files: Sequence[int],
    folder: Path,
    options: Options,
    sources: SourceFiles,
    ledger: Ledger,
    outputs: Outputs | None = None,
) -> None:
    """Write the files of these numbers; to ``outputs``, if they do not go to the folder on disk.

    Raises:
        KeyboardInterrupt: on Ctrl-C, when no thread writes any more.
        Exception: the first that a task raised.
    """
    _Threads(plan, folder, options, sources, ledger, outputs).run(files)


class _Threads:
    """Hand out blocks to threads, and finish each file when its last block is written."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        options: Options,
        sources: SourceFiles,
        ledger: Ledger,
        outputs: Outputs | None,
    ) -> None:
        self._plan, self._options = plan, options
        self._sources, self._ledger = sources, ledger
        self._pairs = pairs_by_tensor(plan.relation)
        self._stop = threading.Event()
        self._behind = WriteBehind()
        self._outputs = outputs or _Disk(folder, self._behind)
        # What is sent to or comes from behind URLs is held in parts, too large for many files at once.
        self._alone = outputs is not None or sources.is_remote
        self._open: dict[int, _Open] = {}

    def run(self, files: Sequence[int]) -> None:
        count = self._options.workers or default_workers()
        try:
            on_threads(self._jobs(files), self._do, count=count, memory=Buffers, stop=self._stop)
        finally:
            self._behind.close()
            for one in self._open.values():
                one.sink.close()

    def _jobs(self, files: Sequence[int]) -> Iterator[_Job]:
        """Yield the blocks of all files in order; files that share parts of the source are made abreast."""
        groups = [Group([number]) for number in files]
        if not self._alone:
            groups = grouped(self._plan, files, self._pairs)
        for group in groups:
            shared = group.shared if len(group.files) > 1 else set()
            for tasks in abreast([self._begin(number) for number in group.files]):
                yield _Job(tasks, shared)

    def _begin(self, number: int) -> Iterator[Task]:
        """Open a file, and yield its blocks in order."""
        file = self._plan.files[number]
        sink = self._outputs.open(file)
        self._open[number] = _Open(Filler(self._plan, file, self._sources, self._pairs), sink)
        if self._sources.is_remote:
            self._sources.expect(needed(self._plan, file, self._pairs))
        self._ledger.open(number)
        yield from tasks_of(number, file.layout.size, self._outputs.blocks(file))

    def _do(self, job: _Job, buffers: Buffers) -> None:
        alone = tile_bytes(self._options)
        buffers.rows.serve(job.shared, HELD * alone)
        tile = tile_abreast(alone, len(job.tasks), casts=bool(self._plan.casts))
        for results in abreast([self._steps(task, buffers, tile) for task in job.tasks]):
            if self._stop.is_set():
                return
            for result in results:
                if result is not None and self._ledger.took(result):
                    self._finish(result.task.file)

    def _steps(self, task: Task, buffers: Buffers, tile: int) -> Iterator[Result | None]:
        one = self._open[task.file]
        return steps(task, self._plan.files[task.file].layout, one.filler, one.sink, buffers, tile=tile)

    def _finish(self, number: int) -> None:
        one, layout = self._open[number], self._plan.files[number].layout
        if layout.needs_crc:
            seal(layout, self._ledger.crcs(number), one.sink)
        one.sink.finish()
        del self._open[number]
        self._ledger.whole(number)
