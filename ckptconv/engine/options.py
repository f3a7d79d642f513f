"""Say how to run a plan, and what a run did."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from ckptconv.errors import UsageError

__all__ = [
    "DEFAULT_MEMORY",
    "DIGEST_BLOCK",
    "MOST_THREADS",
    "SMALLEST_TILE",
    "Engine",
    "Options",
    "Report",
    "default_workers",
    "peak_memory",
    "threads",
    "tile_bytes",
]

DIGEST_BLOCK = 4 << 20
"""Bytes a digest covers; the unit of work of a thread. A file's digest is made of its blocks' digests."""

DEFAULT_MEMORY = 64 << 20

Engine = Literal["local", "ray"]

# A thread's tile, its source before a cast, and the scratch of a strided read and of a cast.
_BUFFERS = 6

SMALLEST_TILE = 1 << 14
"""Bytes a thread makes at a time at least, however little memory it may use."""


MOST_THREADS = 256
"""Threads of a run: more would only wait for each other."""

_MOST_TASKS = 1 << 16


def threads(workers: int) -> int:
    """Return how many threads ``--workers`` stands for.

    Raises:
        UsageError: if they are far too many.
    """
    return Options(workers).workers or default_workers()


@dataclass(frozen=True, slots=True)
class Options:
    """Say how to run a plan.

    Attributes:
        workers: Threads that read, cast and write: 0 is two a core, at most 8. On a cluster tasks
            at a time: 0 is two a core of all.
        max_memory: Bytes all buffers together may take; on a cluster, those of each task.
        resume: Go on with what an interrupted run of the same plan finished.
        overwrite: Replace a model that is in the output folder.
        engine: Who carries out the tasks: threads of this process, or a Ray cluster.
        address: Of the cluster: ``auto`` (the default) for the one this machine belongs to, ``HOST:PORT``,
            ``ray://HOST:PORT``, or ``local`` to start one for the run.
    """

    workers: int = 0
    max_memory: int = DEFAULT_MEMORY
    resume: bool = False
    overwrite: bool = False
    engine: Engine = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: if the engine is unknown, an address is given without a cluster, or there are far too
                many workers.
        """
        most = _MOST_TASKS if self.engine == "ray" else MOST_THREADS
        if not 0 <= self.workers <= most:
            raise UsageError(
                f"--workers {self.workers}: from 0 to {most:,}", hint="0 is two a core, at most 8"
            )
        if self.engine not in get_args(Engine):
            raise UsageError(f"there is no engine {self.engine!r}", hint="engines: local, ray")
        if self.address is not None and self.engine != "ray":
            raise UsageError("--address is that of a Ray cluster", hint="give --engine ray as well")


@dataclass(frozen=True, slots=True)
class Report:
    """Say what a run wrote.

    Attributes:
        folder: The output folder.
        files: Digest of each weight file: XXH3-128 over the XXH3-64 digests of its 4 MiB blocks, taken with
            zeros in place of the CRC-32 sums that archives of ``torch.save`` hold.
        bytes_out: Bytes of the weight files.
        resumed: Bytes of them that an earlier run had written.
        overflows: Values that became infinite in a cast.
        removed: Files of the model that was in the folder which a loader would have read with the new one.
    """

    folder: str
    files: dict[str, str]
    bytes_out: int
    resumed: int
    overflows: int
    removed: tuple[str, ...] = ()


def default_workers() -> int:
    """Return the number of threads used unless told otherwise: two a core, at most 8.

    One writes past the page cache, and waits for the disk, while the other computes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, 2 * cores)


def tile_bytes(options: Options) -> int:
    """Return how many bytes of output a thread makes at a time under the memory limit."""
    workers = options.workers or default_workers()
    tile = max(1, options.max_memory // (workers * _BUFFERS))
    return max(SMALLEST_TILE, min(DIGEST_BLOCK, 1 << (tile.bit_length() - 1)))


def peak_memory(options: Options) -> int:
    """Return the most bytes all threads' buffers together take."""
    return tile_bytes(options) * _BUFFERS * (options.workers or default_workers())
