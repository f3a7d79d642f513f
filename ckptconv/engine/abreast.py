"""Say which files are made abreast: ranks that hold parts of the same tensors, then read once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TypeVar

from ckptconv.engine.options import SMALLEST_TILE
from ckptconv.plans.plan import Plan
from ckptconv.relations import Pair

__all__ = ["HELD", "Group", "abreast", "grouped", "tile_abreast"]

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
