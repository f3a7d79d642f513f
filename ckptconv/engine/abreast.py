"""Make files abreast: ranks that hold parts of the same tensors, which are then read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import zip_longest
from typing import TypeVar

from ckptconv.engine.ahead import Ahead
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.options import SMALLEST_TILE
from ckptconv.engine.task import Opened, Result, Task, steps
from ckptconv.plans.plan import Plan
from ckptconv.records import dataclass
from ckptconv.relations import Pair

__all__ = ["HELD", "Group", "Job", "abreast", "grouped", "make", "tile_abreast", "tiles_of"]

HELD = 4
"""Tiles' worth of the source that a thread holds for files made abreast."""

_MOST = 8  # files made abreast: the more, the smaller the tiles of each

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are made abreast.

    Attributes:
        files: Their numbers, ascending.
        shared: What of the source more than one of them reads: tensors of which they hold columns, whose
            rows are read, and those of which they hold copies.
    """

    files: list[int] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Job:
    """Tasks of files that are made abreast, for one thread.

    Attributes:
        number: Its place among the jobs of a run.
        tasks: The tasks, each of another file.
        shared: What of the source these share.
        tile: Bytes of each file that are made at a time.
        held: Bytes that are held of what they share.
    """

    number: int
    tasks: Sequence[Task]
    shared: set[str]
    tile: int
    held: int

    @classmethod
    def of(
        cls, number: int, tasks: Sequence[Task], shared: set[str], tile: int, *, count: int, casts: bool
    ) -> Job:
        """Make a job of ``count`` files, or of those of them that have a task left.

        Args:
            number: Its place.
            tasks: The tasks.
            shared: What of the source the files share.
            tile: Bytes that a thread makes of a file alone.
            count: How many files are made abreast.
            casts: Whether they are cast.
        """
        return cls(
            number,
            tasks,
            shared if count > 1 else set(),
            tile_abreast(tile, count, casts=casts),
            HELD * tile,
        )


def tiles_of(job: Job, sizes: Callable[[int], int]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield what is made at a time, in the order of `make`: of each file its number, first byte and end.

    Args:
        job: The job.
        sizes: Returns the size of a file of that number.
    """

    def of(task: Task) -> Iterator[tuple[int, int, int]]:
        lo, hi = task.span(sizes(task.file))
        return ((task.file, at, min(at + job.tile, hi)) for at in range(lo, hi, job.tile))

    return abreast([of(task) for task in job.tasks])


def make(
    job: Job, opened: Callable[[int], Opened], buffers: Buffers, ahead: Ahead | None = None
) -> Iterator[Result | None]:
    """Carry out the tasks of a job abreast, as `ckptconv.engine.task.steps` does each.

    Args:
        job: The job.
        opened: Returns the file of that number.
        buffers: The calling thread's memory.
        ahead: Asks for what is read, where that lies behind URLs.

    Yields:
        None after some tiles, and what was found of each task when it is done.
    """
    buffers.rows.serve(job.shared, job.held)
    rows = abreast([steps(task, opened(task.file), buffers, tile=job.tile) for task in job.tasks])
    if ahead is not None:
        for turn, _ in enumerate(tiles_of(job, lambda file: opened(file).layout.size)):
            with ahead.turn((job.number, turn)):
                results = next(rows)
            yield from (*filter(None, results), None)
    for results in rows:
        yield from (*filter(None, results), None)


def grouped(plan: Plan, numbers: Iterable[int], pairs: Mapping[str, Sequence[Pair]]) -> list[Group]:
    """Group files that read the same parts of the source, as the ranks of a pipeline stage do.

    Args:
        plan: The plan.
        numbers: Of the files to be grouped.
        pairs: The plan's pairs by the tensor they fill.

    Returns:
        The groups, in the order of their first files; most files are a group of their own.
    """
    groups: list[Group] = []
    group_of: dict[str, Group] = {}
    for number in numbers:
        lefts = [
            p for t in plan.files[number].layout.tensors for p in pairs.get(t.name, ()) if not p.left_copy
        ]
        shared = {p.left.tensor: None for p in lefts if _is_shared(plan, p)}
        group = next((g for n in shared if (g := group_of.get(n)) and len(g.files) < _MOST), None)
        if group is None:
            group = Group()
            groups.append(group)
        group.files.append(number)
        group.shared.update(shared)
        for pair in lefts:
            group_of[pair.left.tensor] = group
    return groups


def _is_shared(plan: Plan, pair: Pair) -> bool:
    """Whether others read what a pair reads, or what lies between: not of a tensor that lies in many places.

    Parameters of ZeRO-3 lie in turns in the flat tensor of their group, but far apart in each rank's file.
    """
    left = pair.left
    return pair.right_copy or (not left.is_contiguous and len(plan.stored[left.tensor].extents) == 1)


def abreast(sequences: Sequence[Iterator[T]]) -> Iterator[list[T]]:
    """Yield the first of each sequence, then the second of each that has one, and so on."""
    none = object()
    for row in zip_longest(*sequences, fillvalue=none):
        yield [one for one in row if one is not none]  # type: ignore[misc]


def tile_abreast(tile: int, count: int, *, casts: bool) -> int:
    """Return how many bytes to make of each of ``count`` files at a time, so that what they read is held.

    Args:
        tile: Bytes a thread makes of a file alone, a power of two.
        count: How many files.
        casts: Whether they are cast, from elements of up to twice the size.
    """
    parts = -(-count * (2 if casts else 1) // HELD)
    return max(SMALLEST_TILE, tile >> (parts - 1).bit_length())
