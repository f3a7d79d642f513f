"""Join the slices of ranks to whole tensors; what several ranks hold is declared a replica."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from ckptconv.containers.stored import Extent, Stored
from ckptconv.errors import PlanError
from ckptconv.parallel.devices import Cut, slice_box, stacked_box
from ckptconv.plans.builder import GraphBuilder
from ckptconv.records import dataclass
from ckptconv.relations import Box, join

__all__ = ["Holder", "add_tensor", "stack"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A rank that holds a slice of a tensor.

    Attributes:
        rank: The rank, of all.
        position: The rank within its pipeline stage.
        stored: The slice.
    """

    rank: int
    position: int
    stored: Stored


def add_tensor(
    graph: GraphBuilder, name: str, groups: Sequence[tuple[Cut, Sequence[Holder]]], where: str
) -> None:
    """Relate the slices of a tensor to the whole.

    Args:
        graph: What is added to.
        name: The tensor.
        groups: For each pipeline stage that has the tensor how it is cut, and who holds it. The first
            provides it; what the others hold is the same again.
        where: The checkpoint, for errors.

    Raises:
        PlanError: if a slice is missing, or slices differ in shape or type.
    """
    first = groups[0][1][0].stored
    whole = tuple(n * c for n, c in zip(first.shape, groups[0][0].counts, strict=True))
    graph.name(name, whole, first.dtype)
    for number, (cut, holders) in enumerate(groups):
        _same(name, whole, cut, groups[0][1][0], holders, where)
        if prod(whole):
            _add_group(graph, name, whole, cut, holders, number > 0, where)


def _same(
    name: str,
    whole: tuple[int, ...],
    cut: Cut,
    first: Holder,
    holders: Iterable[Holder],
    where: str,
) -> None:
    for h in holders:
        found = tuple(n * c for n, c in zip(h.stored.shape, cut.counts, strict=True))
        if (found, h.stored.dtype) != (whole, first.stored.dtype):
            raise PlanError(
                f"{name} is {first.stored.dtype} {list(first.stored.shape)} on rank {first.rank}, "
                f"{h.stored.dtype} {list(h.stored.shape)} on rank {h.rank}: not slices of one tensor",
                where=where,
                hint="check that all ranks' files are of one save, and the strategy files of this run",
            )


def _add_group(
    graph: GraphBuilder,
    name: str,
    whole: tuple[int, ...],
    cut: Cut,
    holders: Sequence[Holder],
    copy: bool,
    where: str,
) -> None:
    by_slice: dict[int, list[Holder]] = {n: [] for n in range(prod(cut.counts))}
    for h in sorted(holders, key=lambda h: h.rank):
        number = 0
        for i, count in zip(cut.index(h.position), cut.counts, strict=True):
            number = number * count + i
        by_slice[number].append(h)
    missing = [n for n, found in by_slice.items() if not found]
    if missing:
        raise PlanError(
            f"{name}: slice {missing[0] + 1} of {len(by_slice)} is in no file "
            f"({len(missing)} of them are missing); ranks read: {_ranks(holders)}",
            where=where,
            hint="copy the folders of all ranks (rank_0, rank_1, ...) of this save",
        )
    full = min(map(len, by_slice.values()))
    for level in range(full):
        row = [found[level] for found in by_slice.values()]
        key = f"rank_{row[0].rank}{f'..{row[-1].rank}' if len(row) > 1 else ''}/{name}"
        _pair(graph, key, stack([h.stored for h in row]), stacked_box(name, whole, cut), copy or level > 0)
    for found in by_slice.values():
        for h in found[full:]:
            _pair(graph, f"rank_{h.rank}/{name}", h.stored, slice_box(name, whole, cut, h.position), True)


def _pair(graph: GraphBuilder, key: str, stored: Stored, box: Box, copy: bool) -> None:
    graph.store(key, stored)
    graph.pairs += join(Box.whole(key, stored.shape), box, left_copy=copy)


def stack(parts: Sequence[Stored]) -> Stored:
    """Put slices of one shape one after the other along a new leading axis."""
    size = parts[0].numel
    extents = tuple(
        Extent(i * size + e.start, e.path, e.offset) for i, part in enumerate(parts) for e in part.extents
    )
    return Stored(parts[0].dtype, (len(parts), *parts[0].shape), extents)


def _ranks(holders: Iterable[Holder]) -> str:
    ranks = sorted({h.rank for h in holders})
    shown = ", ".join(map(str, ranks[:16]))
    return shown + (f" and {len(ranks) - 16} more" if len(ranks) > 16 else "")
