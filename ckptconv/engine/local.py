"""Carry out tasks on a few threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ckptconv.engine.abreast import Group, Job, abreast, grouped, make
from ckptconv.engine.ahead import Ahead
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.flush import WriteBehind
from ckptconv.engine.ledger import Ledger
from ckptconv.engine.options import Options, default_workers, tile_bytes
from ckptconv.engine.reads import turns_of
from ckptconv.engine.sink import PartFile, Sink, create
from ckptconv.engine.sums import seal
from ckptconv.engine.task import Opened, tasks_of
from ckptconv.engine.threads import on_threads
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import OutFile, Plan

__all__ = ["Outputs", "run_locally"]


class Outputs(Protocol):
    """Open the files of a run."""

    def open(self, file: OutFile) -> Sink:
        """Begin a file."""

    def blocks(self, file: OutFile) -> int:
        """Return how many blocks of a file make a task."""

    def fitting(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Return groups of files that can be made abreast."""


class _Disk:
    """Write into the output folder."""

    def __init__(self, folder: Path, behind: WriteBehind) -> None:
        self._folder, self._behind = folder, behind

    def open(self, file: OutFile) -> Sink:
        create(self._folder / (file.name + ".part"), file.layout.size)
        return PartFile(self._folder, file.name, self._behind)

    def blocks(self, file: OutFile) -> int:
        return 1

    def fitting(self, groups: Sequence[Group]) -> Sequence[Group]:
        return groups


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
        self._ahead: Ahead | None = None
        self._open: dict[int, Opened] = {}

    def run(self, files: Sequence[int]) -> None:
        count = self._options.workers or default_workers()
        groups = self._outputs.fitting(grouped(self._plan, files, self._pairs))
        if self._sources.is_remote:
            turns = turns_of(self._plan, self._jobs(groups), self._pairs)
            self._ahead = Ahead(turns, self._sources, self._stop)
        try:
            on_threads(self._begun(groups), self._do, count=count, memory=Buffers, stop=self._stop)
        finally:
            self._behind.close()
            for one in self._open.values():
                one.sink.close()

    def _jobs(self, groups: Sequence[Group]) -> Iterator[Job]:
        """Yield the blocks of all files in order; files that share parts of the source are made abreast."""
        number, tile, casts = 0, tile_bytes(self._options), bool(self._plan.casts)
        for group in groups:
            files = [(n, self._plan.files[n]) for n in group.files]
            sequences = [tasks_of(n, f.layout.size, self._outputs.blocks(f)) for n, f in files]
            for tasks in abreast(sequences):
                yield Job.of(number, tasks, group.shared, tile, count=len(files), casts=casts)
                number += 1

    def _begun(self, groups: Sequence[Group]) -> Iterator[Job]:
        """Yield the jobs, each when the files of its tasks are open."""
        for job in self._jobs(groups):
            for task in job.tasks:
                if task.first == 0:
                    self._begin(task.file)
            yield job

    def _begin(self, number: int) -> None:
        file = self._plan.files[number]
        filler = Filler(self._plan, file, self._sources, self._pairs)
        self._open[number] = Opened(file.layout, filler, self._outputs.open(file))
        self._ledger.open(number)

    def _do(self, job: Job, buffers: Buffers) -> None:
        for result in make(job, self._open.__getitem__, buffers, self._ahead):
            if self._stop.is_set():
                return
            if result is not None and self._ledger.took(result):
                self._finish(result.task.file)

    def _finish(self, number: int) -> None:
        one, layout = self._open[number], self._plan.files[number].layout
        if layout.needs_crc:
            seal(layout, self._ledger.crcs(number), one.sink)
        one.sink.finish()
        del self._open[number]
        self._ledger.whole(number)
