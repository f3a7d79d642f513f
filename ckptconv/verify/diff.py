"""Compare two checkpoints tensor by tensor, in tiles, on a few threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, inf, isfinite, sqrt
from time import perf_counter
from typing import Any

import numpy as np

from ckptconv.dtypes import DType, numpy_dtype
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.events import Listener, Progress, Started
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.gather import Array, raw_dtype
from ckptconv.engine.options import Options, default_workers, tile_bytes
from ckptconv.errors import MismatchError
from ckptconv.graph import OutFile, Pair, Plan, Spec
from ckptconv.graph.terms import operands
from ckptconv.storage.base import FileLayout, Placed
from ckptconv.storage.files import SourceFiles

__all__ = ["Diff", "Same", "TensorDiff", "compare"]

_BLOCK = 1 << 16  # elements looked at in float64 at a time; they stay in the second-level cache


@dataclass(frozen=True, slots=True)
class Same:
    """Name a tensor that both sides have, and what each side calls it."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """Say how one tensor differs.

    Elements are equal if their values are; two NaNs are equal, and so are 0.0 and -0.0.

    Attributes:
        name: The tensor.
        shape: Its shape on side A.
        shape_b: Its shape on side B; nothing was compared if it is another.
        dtype: Its element type on side A.
        dtype_b: Its element type on side B.
        count: Elements that differ.
        beyond: Those of them that differ by more than the tolerances allow.
        largest: The largest absolute difference that is finite.
        mean: The mean absolute difference of all elements whose difference is finite.
        relative: The Euclidean norm of the difference over that of side B's values; infinite if those are 0.
        index: Where the largest difference is; the first NaN or infinity against a number if there is no other.
        values: The values there, of A and of B.
        unbounded: Elements that are NaN or infinite on one side, and something else on the other.
        nans: NaNs on side A and on side B.
        bits: Elements of equal value and different bits: signed zeros, NaNs.
        conflicts: Copies of the tensor that disagree inside one of the checkpoints.
    """

    name: str
    shape: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype: str
    dtype_b: str
    count: int = 0
    beyond: int = 0
    largest: float = 0.0
    mean: float = 0.0
    relative: float = 0.0
    index: tuple[int, ...] | None = None
    values: tuple[Any, Any] | None = None
    unbounded: int = 0
    nans: tuple[int, int] = (0, 0)
    bits: int = 0
    conflicts: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One of ``shape``, ``differs``, ``within`` (the tolerances), ``equal``."""
        if self.shape != self.shape_b:
            return "shape"
        if self.beyond or self.conflicts:
            return "differs"
        return "within" if self.count else "equal"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data; what JSON has no number for is a string."""
        shapes = [list(self.shape), list(self.shape_b)]
        found = {
            "name": self.name,
            "verdict": self.verdict,
            "shape": shapes[0],
            "dtype": self.dtype,
            "dtype_b": self.dtype_b,
        }
        if self.shape != self.shape_b:
            return {**found, "shape_b": shapes[1]}
        return {
            **found,
            "elements": _numel(self.shape),
            "differing": self.count,
            "beyond": self.beyond,
            "largest": _number(self.largest),
            "mean": _number(self.mean),
            "relative": _number(self.relative),
            "index": None if self.index is None else list(self.index),
            "values": None if self.values is None else [_number(v) for v in self.values],
            "unbounded": self.unbounded,
            "nans": list(self.nans),
            "bits_only": self.bits,
            "conflicts": list(self.conflicts),
        }


@dataclass(frozen=True, slots=True)
class Diff:
    """Hold how two checkpoints differ.

    Attributes:
        a: Where the one is.
        b: Where the other is.
        only_a: Tensors that A has alone.
        only_b: Tensors that B has alone.
        tensors: Those that both have, what differs most first.
        atol: Absolute difference allowed.
        rtol: Difference allowed relative to B's value.
        bytes: Bytes that were compared, of both sides.
        seconds: How long it took.
        notes: ``(level, text)`` for people.
    """

    a: str
    b: str
    only_a: Mapping[str, Spec]
    only_b: Mapping[str, Spec]
    tensors: tuple[TensorDiff, ...]
    atol: float
    rtol: float
    bytes: int
    seconds: float
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all is equal within the tolerances; element types alone do not count."""
        return (
            not self.only_a
            and not self.only_b
            and all(t.verdict in ("equal", "within") for t in self.tensors)
        )

    def counts(self) -> dict[str, int]:
        """Return how many tensors there are of each kind of outcome."""
        found = {"equal": 0, "within": 0, "differs": 0, "shape": 0}
        for t in self.tensors:
            found[t.verdict] += 1
        dtypes = sum(t.dtype != t.dtype_b for t in self.tensors)
        return {**found, "dtype": dtypes, "only_a": len(self.only_a), "only_b": len(self.only_b)}

    def to_dict(self, *, everything: bool = True) -> dict[str, Any]:
        """Return the outcome as JSON-ready data; without ``everything`` equal tensors are left out."""
        kept = [t for t in self.tensors if everything or t.verdict != "equal" or t.dtype != t.dtype_b]
        return {
            "ok": self.ok,
            "a": self.a,
            "b": self.b,
            "atol": self.atol,
            "rtol": self.rtol,
            "counts": self.counts(),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "only_a": _specs(self.only_a),
            "only_b": _specs(self.only_b),
            "tensors": [t.to_dict() for t in kept],
            "notes": [{"level": level, "text": text} for level, text in self.notes],
        }


def _specs(found: Mapping[str, Spec]) -> list[dict[str, Any]]:
    return [{"name": n, "shape": list(s.shape), "dtype": s.dtype} for n, s in found.items()]


def _number(value: Any) -> Any:
    if isinstance(value, complex):
        return str(value)
    return value if not isinstance(value, float) or isfinite(value) else str(value)


def _numel(shape: Sequence[int]) -> int:
    return Spec(tuple(shape), "").numel


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
    found.sort(key=lambda t: (order[t.verdict], not t.unbounded, -t.relative, -t.largest))
    return Diff(
        a.source, b.source, {}, {}, tuple(found), atol, rtol, run.total, perf_counter() - begin
    )


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
        side = cls(plan, name, dtype, sources, pairs, _filler(plan, name, dtype, sources, pairs))
        return side

    def values(self, lo: int, hi: int, buffers: Buffers) -> Array:
        """Return elements ``lo`` up to ``hi``; copies that disagree are remembered, and not looked at again."""
        size = self.dtype.itemsize
        try:
            data, _, _ = self.filler.fill(lo * size, hi * size, buffers)
        except MismatchError as e:
            self.conflicts.append(e.message if e.where is None else f"{e.message} in {e.where}")
            names = (self.name, *operands({self.name: self.plan.terms.get(self.name, ())}))
            first = {n: [p for p in self.pairs.get(n, ()) if not p.left_copy] for n in names}
            self.filler = _filler(self.plan, self.name, self.dtype, self.sources, first)
            data, _, _ = self.filler.fill(lo * size, hi * size, buffers)
        return data.view(numpy_dtype(self.dtype))


def _filler(
    plan: Plan, name: str, dtype: DType, sources: SourceFiles, pairs: Mapping[str, Sequence[Pair]]
) -> Filler:
    shape = plan.relation.right[name].shape
    placed = Placed(name, dtype, shape, 0)
    return Filler(
        plan, OutFile(name, "bin", FileLayout(placed.nbytes, (), (placed,))), sources, pairs
    )


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
        numel = _numel(self.shape)
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
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._found: list[TensorDiff] = []
        self.total = sum(_nbytes(a, t.a) + _nbytes(b, t.b) for t in tensors if self._comparable(t))

    def _comparable(self, same: Same) -> bool:
        return self._a.relation.right[same.a].shape == self._b.relation.right[same.b].shape

    def go(self) -> list[TensorDiff]:
        self._tell(Started(self.total, 0))
        with SourceFiles(self._a.inputs) as ours, SourceFiles(self._b.inputs) as theirs:
            jobs = self._jobs(ours, theirs)
            threads = [
                threading.Thread(target=self._worker, args=(jobs,), daemon=True) for _ in range(self._workers)
            ]
            for t in threads:
                t.start()
            try:
                for t in threads:
                    while t.is_alive():
                        t.join(0.1)
            except KeyboardInterrupt:
                self._stop.set()
                for t in threads:
                    t.join()
                raise
            if self._error is not None:
                raise self._error
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

    def _worker(self, jobs: Iterator[tuple[_Work, int, int]]) -> None:
        buffers = Buffers(), Buffers()
        try:
            while not self._stop.is_set():
                with self._lock:
                    job = next(jobs, None)
                if job is None:
                    return
                self._one(*job, buffers)
        except BaseException as e:
            with self._lock:
                if self._error is None:
                    self._error = e
            self._stop.set()

    def _one(self, work: _Work, lo: int, hi: int, buffers: tuple[Buffers, Buffers]) -> None:
        a, b = work.a.values(lo, hi, buffers[0]), work.b.values(lo, hi, buffers[1])
        tile = _Tile(lo)
        alike = a.dtype == b.dtype and np.array_equal(_raw(a), _raw(b))
        nans = _nans(a, work.a.dtype)
        tile.nans = nans, nans if alike else _nans(b, work.b.dtype)
        if not alike:
            for at in range(0, hi - lo, _BLOCK):
                tile.add(at, a[at : at + _BLOCK], b[at : at + _BLOCK], self._tolerance)
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
            for at in range(0, hi - lo, _BLOCK):
                norm += _squares(_wide(b[at : at + _BLOCK]))
            work.sums.append((0.0, 0.0, norm))
        with self._lock:
            self._found.append(work.outcome())


def _nbytes(plan: Plan, name: str) -> int:
    spec = plan.relation.right[name]
    return spec.numel * dtype_named(spec.dtype).itemsize


@dataclass(slots=True)
class _Tile:
    """Sum up the differences of one tile, whose first element is ``lo`` of the tensor."""

    lo: int
    count: int = 0
    beyond: int = 0
    unbounded: int = 0
    bits: int = 0
    nans: tuple[int, int] = (0, 0)
    largest: tuple[float, int, Any] = (-1.0, 0, None)
    first: tuple[int, Any] | None = None
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def add(self, at: int, a: Array, b: Array, tolerance: tuple[float, float]) -> None:
        """Add a block of elements that begins at ``at`` of the tile."""
        x, y = _wide(a), _wide(b)
        alike = a.dtype == b.dtype
        with np.errstate(all="ignore"):
            if a.dtype.kind in "iub" and b.dtype.kind in "iub":
                differ = a != b
            else:
                differ = ~((x == y) | (np.isnan(x) & np.isnan(y)))
            if alike:
                self.bits += int((_raw(a) != _raw(b)).sum() - differ.sum())
            norm = _squares(y)
            if not differ.any():
                self._sum(0.0, 0.0, norm)
                return
            delta = np.abs(x - y)
            delta[differ & (delta == 0)] = 1.0  # 64-bit integers so large that float64 holds both as one
            bounded = np.isfinite(delta)
            free = differ & ~bounded
            self.count += int(differ.sum())
            self.unbounded += int(free.sum())
            near = delta <= tolerance[0] + tolerance[1] * np.abs(y)
            self.beyond += int((differ & ~(near & bounded)).sum())
            if self.first is None and free.any():
                i = int(np.argmax(free))
                self.first = self.lo + at + i, (_value(a[i]), _value(b[i]))
            delta[~(differ & bounded)] = 0.0
            if (differ & bounded).any():
                i = int(np.argmax(delta))
                found = (float(delta[i]), -(self.lo + at + i), (_value(a[i]), _value(b[i])))
                self.largest = max(self.largest, found, key=_rank)
            self._sum(float(delta.sum()), float(np.dot(delta, delta)), norm)

    def _sum(self, total: float, squares: float, norm: float) -> None:
        self.sums = self.sums[0] + total, self.sums[1] + squares, self.sums[2] + norm


def _merge(work: _Work, tile: _Tile) -> None:
    work.count += tile.count
    work.beyond += tile.beyond
    work.unbounded += tile.unbounded
    work.bits += tile.bits
    work.nans = work.nans[0] + tile.nans[0], work.nans[1] + tile.nans[1]
    work.largest = max(work.largest, tile.largest, key=_rank)
    if tile.first is not None and (work.first is None or tile.first[0] < work.first[0]):
        work.first = tile.first
    if any(tile.sums):
        work.sums.append(tile.sums)


def _rank(found: tuple[float, int, Any]) -> tuple[float, int]:
    """Order differences by size; of equal ones the first element counts."""
    return found[0], found[1]


def _raw(values: Array) -> Array:
    return values.view(raw_dtype(values.dtype.itemsize))


def _wide(values: Array) -> Array:
    """Return values in a type that holds each of them (64-bit integers aside, which are rounded)."""
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _squares(values: Array) -> float:
    """Return the sum of the squares of all finite values."""
    size = np.abs(values)
    size[~np.isfinite(size)] = 0.0
    return float(np.dot(size, size))


def _value(value: Any) -> Any:
    return complex(value) if value.dtype.kind == "c" else int(value) if value.dtype.kind in "iub" else float(value)


# Bits of the magnitude, and those of infinity: a larger magnitude is NaN.
_INFINITY = {
    "float64": (np.uint64(0x7FFF_FFFF_FFFF_FFFF), 0x7FF0_0000_0000_0000),
    "float32": (np.uint32(0x7FFF_FFFF), 0x7F80_0000),
    "float16": (np.uint16(0x7FFF), 0x7C00),
    "bfloat16": (np.uint16(0x7FFF), 0x7F80),
}


def _nans(values: Array, dtype: DType) -> int:
    """Count NaNs."""
    if dtype.kind not in ("float", "complex"):
        return 0
    count = 0
    for at in range(0, values.size, _BLOCK):
        block = values[at : at + _BLOCK]
        if dtype.name in _INFINITY:
            mask, infinity = _INFINITY[dtype.name]
            size = _raw(block) & mask
            if int(size.max()) > infinity:
                count += int((size > infinity).sum())
        else:
            count += int(np.isnan(block).sum())
    return count
