"""Compare two checkpoints tensor by tensor, in tiles, on a few threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from math import fsum, inf, prod, sqrt
from time import perf_counter
from typing import Any

import numpy as np

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import DType, numpy_dtype
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.events import Listener, Progress, Started
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.gather import Array
from ckptconv.engine.options import Options, default_workers, tile_bytes
from ckptconv.engine.threads import on_threads
from ckptconv.errors import MismatchError
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.records import dataclass
from ckptconv.relations import Pair
from ckptconv.relations.terms import operands
from ckptconv.verify.elements import BLOCK, Tile, nans, rank, raw, squares, wide
from ckptconv.verify.outcome import Diff, Same, TensorDiff

__all__ = ["compare"]


def compare(
    a: Plan,
    b: Plan,
    tensors: Sequence[Same],
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    options: Options | None = None,
    listen: Listener | None = None,
) -> Diff:
    """Compare the tensors of two plans; nothing is written.

    Elements are compared in their own type where both sides have the same, else as float64, which holds every
    value of the smaller floating-point types. They differ beyond the tolerances if
    ``|a - b| > atol + rtol * |b|``.

    Args:
        a: Relates stored tensors to those of side A; its files are not looked at.
        b: The same for side B.
        tensors: What both have.
        atol: Absolute difference allowed.
        rtol: Difference allowed relative to B's value.
        options: Threads and memory.
        listen: Called with every event, from any thread.

    Returns:
        The outcome, without what one side has alone.

    Raises:
        FormatError: if a file ends early.
        InputChangedError: if a file changed since the plans were made.
    """
    begin = perf_counter()
    how = options or Options()
    run = _Run(a, b, tensors, (atol, rtol), how, listen or (lambda event: None))
    found = run.go()
    order = {"shape": 0, "differs": 1, "within": 2, "equal": 3}
    place = {t.name: i for i, t in enumerate(tensors)}
    found.sort(key=lambda t: (order[t.verdict], not t.unbounded, -t.relative, -t.largest, place[t.name]))
    return Diff(a.source, b.source, {}, {}, tuple(found), atol, rtol, run.total, perf_counter() - begin)


@dataclass(slots=True)
class _Side:
    """Compute the values of one tensor of one plan."""

    plan: Plan
    name: str
    dtype: DType
    sources: SourceFiles
    pairs: Mapping[str, Sequence[Pair]]
    filler: Filler
    conflicts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, plan: Plan, name: str, sources: SourceFiles, pairs: Mapping[str, Sequence[Pair]]) -> _Side:
        dtype = dtype_named(plan.relation.right[name].dtype)
        return cls(plan, name, dtype, sources, pairs, _filler(plan, name, dtype, sources, pairs))

    def values(self, lo: int, hi: int, buffers: Buffers) -> Array:
        """Return elements ``lo`` up to ``hi``; copies that disagree are noted, and left alone then."""
        size = self.dtype.itemsize
        try:
            data, _, _ = self.filler.fill(lo * size, hi * size, buffers)
        except MismatchError as e:
            self.conflicts.append(e.message if e.where is None else f"{e.message} in {e.where}")
            names = (self.name, *operands(self.plan.terms, [self.name]))
            first = {n: [p for p in self.pairs.get(n, ()) if not p.left_copy] for n in names}
            self.filler = _filler(self.plan, self.name, self.dtype, self.sources, first)
            data, _, _ = self.filler.fill(lo * size, hi * size, buffers)
        return data.view(numpy_dtype(self.dtype))


def _filler(
    plan: Plan, name: str, dtype: DType, sources: SourceFiles, pairs: Mapping[str, Sequence[Pair]]
) -> Filler:
    shape = plan.relation.right[name].shape
    placed = Placed(name, dtype, shape, 0)
    return Filler(plan, OutFile(name, "bin", FileLayout(placed.nbytes, (), (placed,))), sources, pairs)


@dataclass(slots=True)
class _Work:
    """Sum up one tensor."""

    same: Same
    shape: tuple[int, ...]
    a: _Side
    b: _Side
    left: int
    count: int = 0
    beyond: int = 0
    unbounded: int = 0
    bits: int = 0
    nans: tuple[int, int] = (0, 0)
    largest: tuple[float, int, Any] = (-1.0, 0, None)  # difference, minus its index, the two values
    first: tuple[int, Any] | None = None  # index and values of the first unbounded difference
    sums: list[tuple[float, float, float]] = field(default_factory=list)
    equal: list[tuple[int, int]] = field(default_factory=list)

    def outcome(self) -> TensorDiff:
        numel = prod(self.shape)
        bounded = numel - self.unbounded
        total, squares, norm = (fsum(s[i] for s in self.sums) for i in range(3))
        index, values = None, None
        if self.largest[0] >= 0:
            index, values = -self.largest[1], self.largest[2]
        elif self.first is not None:
            index, values = self.first
        at = None if index is None else tuple(int(i) for i in np.unravel_index(index, self.shape or (1,)))
        return TensorDiff(
            self.same.name,
            self.shape,
            self.shape,
            self.a.dtype.name,
            self.b.dtype.name,
            self.count,
            self.beyond,
            max(self.largest[0], 0.0),
            total / bounded if bounded else 0.0,
            (sqrt(squares) / sqrt(norm) if norm else inf) if squares else 0.0,
            at[len(at) - len(self.shape) :] if at is not None else None,
            values,
            self.unbounded,
            self.nans,
            self.bits,
            (*self.a.conflicts, *self.b.conflicts),
        )


class _Run:
    """Hand out tiles to threads."""

    def __init__(
        self,
        a: Plan,
        b: Plan,
        tensors: Sequence[Same],
        tolerance: tuple[float, float],
        options: Options,
        tell: Listener,
    ) -> None:
        self._a, self._b, self._tensors = a, b, tensors
        self._tolerance, self._tell = tolerance, tell
        self._workers = options.workers or default_workers()
        self._tile = tile_bytes(replace(options, max_memory=options.max_memory // 2))  # two sides at a time
        self._lock = threading.Lock()
        self._found: list[TensorDiff] = []
        self.total = sum(_nbytes(a, t.a) + _nbytes(b, t.b) for t in tensors if self._comparable(t))

    def _comparable(self, same: Same) -> bool:
        return self._a.relation.right[same.a].shape == self._b.relation.right[same.b].shape

    def go(self) -> list[TensorDiff]:
        self._tell(Started(self.total, 0))
        with SourceFiles(self._a.inputs) as ours, SourceFiles(self._b.inputs) as theirs:
            on_threads(
                self._jobs(ours, theirs),
                self._one,
                count=self._workers,
                memory=lambda: (Buffers(), Buffers()),
                stop=threading.Event(),
            )
            ours.check()
            theirs.check()
        return self._found

    def _jobs(self, ours: SourceFiles, theirs: SourceFiles) -> Iterator[tuple[_Work, int, int]]:
        """Yield the tiles of all tensors in order."""
        pairs = pairs_by_tensor(self._a.relation), pairs_by_tensor(self._b.relation)
        for same in self._tensors:
            spec, other = self._a.relation.right[same.a], self._b.relation.right[same.b]
            if spec.shape != other.shape:
                self._found.append(TensorDiff(same.name, spec.shape, other.shape, spec.dtype, other.dtype))
                continue
            one = _Side.of(self._a, same.a, ours, pairs[0])
            two = _Side.of(self._b, same.b, theirs, pairs[1])
            step = max(1, self._tile // max(one.dtype.itemsize, two.dtype.itemsize))
            work = _Work(same, spec.shape, one, two, -(-spec.numel // step))
            if not spec.numel:
                self._found.append(work.outcome())
            for lo in range(0, spec.numel, step):
                yield work, lo, min(lo + step, spec.numel)

    def _one(self, job: tuple[_Work, int, int], buffers: tuple[Buffers, Buffers]) -> None:
        work, lo, hi = job
        a, b = work.a.values(lo, hi, buffers[0]), work.b.values(lo, hi, buffers[1])
        tile = Tile(lo)
        alike = a.dtype == b.dtype and np.array_equal(raw(a), raw(b))
        count = nans(a, work.a.dtype)
        tile.nans = count, count if alike else nans(b, work.b.dtype)
        if not alike:
            for at in range(0, hi - lo, BLOCK):
                tile.add(at, a[at : at + BLOCK], b[at : at + BLOCK], self._tolerance)
        self._tell(Progress((hi - lo) * (work.a.dtype.itemsize + work.b.dtype.itemsize)))
        with self._lock:
            _merge(work, tile)
            if alike:
                work.equal.append((lo, hi))
            work.left -= 1
            last = work.left == 0
        if last:
            self._finish(work, buffers[1])

    def _finish(self, work: _Work, buffers: Buffers) -> None:
        """Add what equal tiles have to the norm of a tensor that differs elsewhere."""
        for lo, hi in work.equal if work.count else ():
            b, norm = work.b.values(lo, hi, buffers), 0.0
            for at in range(0, hi - lo, BLOCK):
                norm += squares(wide(b[at : at + BLOCK]))
            work.sums.append((0.0, 0.0, norm))
        with self._lock:
            self._found.append(work.outcome())


def _nbytes(plan: Plan, name: str) -> int:
    spec = plan.relation.right[name]
    return spec.numel * dtype_named(spec.dtype).itemsize


def _merge(work: _Work, tile: Tile) -> None:
    work.count += tile.count
    work.beyond += tile.beyond
    work.unbounded += tile.unbounded
    work.bits += tile.bits
    work.nans = work.nans[0] + tile.nans[0], work.nans[1] + tile.nans[1]
    work.largest = max(work.largest, tile.largest, key=rank)
    if tile.first is not None and (work.first is None or tile.first[0] < work.first[0]):
        work.first = tile.first
    if any(tile.sums):
        work.sums.append(tile.sums)
