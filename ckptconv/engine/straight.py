"""Read tensors whose bytes lie in the source as they are written, in runs that go on over many of them.

A mixture of experts has tens of thousands: what is found out for each tile of each, and a read of its own,
would take longer than the bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ckptconv.containers.base import Placed
from ckptconv.containers.decoded import Decoded
from ckptconv.containers.stored import Stored
from ckptconv.dtypes import DType
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import Plan
from ckptconv.records import dataclass
from ckptconv.relations import Pair

__all__ = ["Reads", "Run", "Straight", "one_run", "straight"]

_LITTLE = 64 << 10  # bytes: what lies scattered is brought together in one go


@dataclass(frozen=True, slots=True)
class Straight:
    """Say where the bytes of a tensor lie, one after the other.

    Attributes:
        names: The tensors of the source.
        starts: Where each part begins in the tensor, ascending, in bytes.
        places: Each part's file, and where it begins there.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    places: tuple[tuple[str, int], ...]

    def spans(self, lo: int, hi: int) -> Iterator[tuple[str, int, int]]:
        """Yield ``(path, byte offset, bytes)`` for bytes ``lo`` up to ``hi``, in order."""
        part = bisect_right(self.starts, lo) - 1
        while lo < hi:
            (path, offset), start = self.places[part], self.starts[part]
            part += 1
            end = min(hi, self.starts[part]) if part < len(self.starts) else hi
            yield path, offset + lo - start, end - lo
            lo = end


def straight(plan: Plan, tensor: Placed, pairs: Sequence[Pair]) -> Straight | None:
    """Return where the bytes of a tensor lie; None if more is to be done than to copy them in their order.

    Args:
        plan: The plan.
        tensor: The tensor, as it is written.
        pairs: The pairs that fill it.
    """
    if tensor.name in plan.terms or len(plan.casts.get(tensor.name, ())) > 1:
        return None
    names, starts, places, done = [], [], [], 0
    for pair in sorted(pairs, key=lambda p: p.right.offset) if len(pairs) > 1 else pairs:
        left, right, stored = pair.left, pair.right, plan.stored[pair.left.tensor]
        if not (left.is_contiguous and right.is_contiguous) or pair.left_copy or right.offset != done:
            return None
        if isinstance(stored, Decoded) or len(stored.extents) != 1:
            return None
        names.append(left.tensor)
        starts.append(done * tensor.dtype.itemsize)
        places.append(
            (stored.extents[0].path, stored.extents[0].offset + left.offset * tensor.dtype.itemsize)
        )
        done += right.numel
    if done * tensor.dtype.itemsize != tensor.nbytes:
        return None
    return Straight(tuple(names), tuple(starts), tuple(places))


class Run(NamedTuple):
    """Say that elements ``first`` up to ``end`` of a tensor lie in ``path`` from byte ``at`` on."""

    path: str
    at: int
    first: int
    end: int


def one_run(stored: Stored, pair: Pair, lo: int, hi: int, dtype: DType) -> Run | None:
    """Return what of a pair lies between elements ``lo`` and ``hi``, if that is one run of a file.

    Where it lies scattered in the tensor it is all of the pair, and little: else there are better ways.

    Args:
        stored: What the pair is of.
        pair: The pair.
        lo: The first element wanted.
        hi: One past the last.
        dtype: What is wanted; None is returned if it is stored as another.
    """
    left, right = pair.left, pair.right
    if stored.dtype != dtype or not left.is_contiguous or len(stored.extents) != 1:
        return None
    if isinstance(stored, Decoded):
        return None
    item, extent, first, end = dtype.itemsize, stored.extents[0], right.offset, right.offset + right.numel
    if right.is_contiguous:
        first, end = max(first, lo), min(end, hi)
        if first >= end:
            return None
    elif right.first < lo or right.last >= hi or (end - first) * item > _LITTLE:
        return None
    at = extent.offset + (left.offset + first - right.offset) * item
    return Run(extent.path, at, first, end)


class Reads:
    """Gather what is read into one tile, and join what follows one another both there and in a file.

    Args:
        out: The tile's bytes.
    """

    def __init__(self, out: memoryview) -> None:
        self._out = out
        self._reads: list[tuple[str, int, int, int]] = []

    def add(self, path: str, offset: int, lo: int, hi: int) -> None:
        """Note that bytes ``lo`` up to ``hi`` of the tile are those from byte ``offset`` of a file on."""
        if self._reads:
            before, at, start, end = self._reads[-1]
            if before == path and end == lo and at + end - start == offset:
                self._reads[-1] = (path, at, start, hi)
                return
        self._reads.append((path, offset, lo, hi))

    def read(self, sources: SourceFiles) -> None:
        """Read it all.

        Raises:
            FormatError: if a file ends early.
            InputChangedError: if a file is not the one the plan was made from.
        """
        for path, offset, lo, hi in self._reads:
            sources.read_into(path, offset, self._out[lo:hi])
