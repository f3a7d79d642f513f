"""Say in which order files are compared: ranks that hold parts of the same tensors side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from ckptconv.graph import OutFile, Pair

__all__ = ["grouped", "in_turns"]

_MOST = 16  # files compared side by side: the more, the smaller their tiles

T = TypeVar("T")


def grouped(files: Sequence[OutFile], pairs: Mapping[str, Sequence[Pair]]) -> list[list[OutFile]]:
    """Group files that would read the same parts of the source, as the ranks of a pipeline stage do.

    Those are files that hold columns of a tensor, whose rows are read, and those that hold copies.

    Args:
        files: The files of a plan.
        pairs: Its pairs by the tensor they fill.

    Returns:
        The groups, in the order of their first files; most files are a group of their own.
    """
    groups: list[list[OutFile]] = []
    group_of: dict[str, list[OutFile]] = {}
    for file in files:
        lefts = [p for t in file.layout.tensors for p in pairs.get(t.name, ()) if not p.left_copy]
        shared = [p.left.tensor for p in lefts if p.right_copy or not p.left.is_contiguous]
        group = next((g for n in shared if len(g := group_of.get(n, [])) and len(g) < _MOST), None)
        if group is None:
            group = []
            groups.append(group)
        group.append(file)
        for pair in lefts:
            group_of.setdefault(pair.left.tensor, group)
    return groups


def in_turns(sequences: Sequence[Iterator[T]]) -> Iterator[T]:
    """Yield the first of each sequence, then the second of each, and so on."""
    left = list(sequences)
    while left:
        for one in list(left):
            try:
                yield next(one)
            except StopIteration:
                left.remove(one)
