"""Say how to run a plan, and what a run did."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, get_args

from ckptconv.errors import UsageError
from ckptconv.numbers.sizes import size_text
from ckptconv.plans.options import Choice, Count, Size, Switch, Text, option
from ckptconv.plans.shown import Shown, count
from ckptconv.plugins import installed
from ckptconv.records import dataclass

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

DEFAULT_MEMORY = 96 << 20
"""Bytes: two threads on each of two cores make whole blocks with it, in one write each."""

Engine = Literal["local", "ray"]

_HOW = "How it runs"

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
    return Options(workers=workers).workers or default_workers()


@dataclass(frozen=True, slots=True)
class Options:
    """Say how to run a plan; every field is a flag."""

    workers: int = option(
        Count(),
        "Threads; 0 is two a core, at most 8. On a cluster tasks at a time.",
        default=0,
        panel=_HOW,
    )
    max_memory: int = option(
        Size(),
        "Most memory all buffers together take, 96MiB by default; on a cluster, those of one task.",
        default=DEFAULT_MEMORY,
        panel=_HOW,
    )
    resume: bool = option(Switch(), "Go on with an interrupted run.", default=False, panel=_HOW, common=True)
    overwrite: bool = option(Switch(), "Replace the model in OUT.", default=False, panel=_HOW, common=True)
    engine: Engine = option(
        Choice(get_args(Engine), more=lambda: installed("engines")),
        "Who does the work: threads of this process, or a Ray cluster.",
        default="local",
        panel=_HOW,
    )
    address: str | None = option(
        Text("ADDRESS"),
        "The Ray cluster: auto (the default), HOST:PORT, ray://HOST:PORT, or local to start one.",
        panel=_HOW,
    )

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: if an address is given without a cluster, both flags about what is there, or there are
                far too many workers.
        """
        most = _MOST_TASKS if self.engine == "ray" else MOST_THREADS
        if not 0 <= self.workers <= most:
            raise UsageError(
                f"--workers {self.workers}: from 0 to {most:,}", hint="0 is two a core, at most 8"
            )
        if self.address is not None and self.engine != "ray":
            raise UsageError("--address is that of a Ray cluster", hint="give --engine ray as well")
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other", hint="give one of the two")


@dataclass(frozen=True, slots=True, repr=False)
class Report(Shown):
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

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        return {
            "folder": self.folder,
            "written": f"{size_text(self.bytes_out)} in {count(len(self.files), 'file')}",
            "resumed": size_text(self.resumed) if self.resumed else None,
            "overflows": self.overflows or None,
            "removed": ", ".join(self.removed),
        }


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
