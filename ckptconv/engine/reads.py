"""Tell which bytes of files behind URLs the tiles of a plan's files are made of."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from ckptconv.containers.decoded import Decoded
from ckptconv.containers.stored import Stored
from ckptconv.engine.abreast import Job, tiles_of
from ckptconv.engine.ahead import Range, Turn
from ckptconv.engine.fill import Pairs, indexed
from ckptconv.engine.gather import runs, shared_rows
from ckptconv.places.places import is_remote
from ckptconv.plans.plan import Plan
from ckptconv.relations import Pair, restrict
from ckptconv.relations.terms import operands

__all__ = ["Reads", "turns_of"]


def turns_of(
    plan: Plan, jobs: Iterable[Job], pairs: Mapping[str, Sequence[Pair]]
) -> Iterator[tuple[Turn, list[Range]]]:
    """Yield what each turn of jobs reads, as `ckptconv.engine.abreast.make` takes them.

    Args:
        plan: The plan.
        jobs: All jobs, in order.
        pairs: The plan's pairs by tensor.
    """
    reads = Reads(plan, pairs)
    for job in jobs:
        for turn, tiles in enumerate(tiles_of(job, lambda file: plan.files[file].layout.size)):
            yield (job.number, turn), [r for tile in tiles for r in reads.of(*tile, job.shared, job.held)]


class Reads:
    """Tell what ranges of a plan's files are made of. What is read in no such order is left out.

    Args:
        plan: The plan.
        pairs: The plan's pairs by tensor.
    """

    def __init__(self, plan: Plan, pairs: Mapping[str, Sequence[Pair]]) -> None:
        self._plan, self._by_tensor = plan, pairs
        self._offsets: dict[int, list[int]] = {}
        self._pairs: dict[str, Pairs] = {}
        self._remote: dict[str, bool] = {}

    def of(self, file: int, lo: int, hi: int, shared: set[str], room: int) -> Iterator[Range]:
        """Yield what bytes ``lo`` up to ``hi`` of a file are made of.

        Args:
            file: Its number in the plan.
            lo: First byte.
            hi: One past the last.
            shared: Tensors whose rows are held for others.
            room: Bytes that may be held of them.
        """
        layout = self._plan.files[file].layout
        if file not in self._offsets:
            self._offsets[file] = [t.offset for t in layout.tensors]
        offsets = self._offsets[file]
        for i in range(max(0, bisect_right(offsets, lo) - 1), bisect_left(offsets, hi)):
            tensor = layout.tensors[i]
            item, numel = tensor.dtype.itemsize, prod(tensor.shape)
            first, end = max(0, lo - tensor.offset) // item, min(-(-(hi - tensor.offset) // item), numel)
            if first < end:
                for name in (tensor.name, *operands(self._plan.terms, [tensor.name])):
                    if self._plan.relation.right[name].numel == numel:
                        yield from self._elements(name, first, end, shared, room)

    def _elements(self, name: str, lo: int, hi: int, shared: set[str], room: int) -> Iterator[Range]:
        pairs = self._pairs.get(name)
        if pairs is None:
            pairs = self._pairs[name] = indexed(self._by_tensor.get(name, ()))
        for pair in (*pairs.over(lo, hi), *pairs.copies):
            key = pair.left.tensor
            stored = self._plan.stored[key]
            if not self._is_remote(key, stored):
                continue
            for piece in restrict(pair, lo, hi):
                for a, b in _runs(stored, piece, room if key in shared else 0):
                    yield from (r for r in _spans(stored, a, b) if is_remote(r[0]))

    def _is_remote(self, key: str, stored: Stored) -> bool:
        found = self._remote.get(key)
        if found is None:
            found = self._remote[key] = any(map(is_remote, stored.paths()))
        return found


def _runs(stored: Stored, piece: Pair, room: int) -> Iterator[tuple[int, int]]:
    """Yield the elements that are read of a piece, as first and one past the last."""
    size, stride, _ = piece.aligned()
    rows = shared_rows(stored, piece.left.offset, size, stride, room) if room else None
    if rows is not None:
        yield rows
    else:
        yield from runs(piece.left.offset, size, stride, stored.dtype.itemsize)


def _spans(stored: Stored, lo: int, hi: int) -> Iterator[Range]:
    """Yield where elements lie; of a quantised matrix, the codes and those scales that are about as far."""
    if not isinstance(stored, Decoded):
        for path, at, count in stored.spans(lo, hi):
            yield path, at, at + count
        return
    for role, part in stored.operands.items():
        more = part.shape[-1] if part.shape and role != "codes" else 0
        first = max(0, lo * part.numel // stored.numel - more)
        end = min(part.numel, -(-hi * part.numel // stored.numel) + more)
        for path, at, count in part.spans(first, end):
            yield path, at, at + count
