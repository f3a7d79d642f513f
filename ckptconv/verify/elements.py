"""Compare elements: how many differ, by how much, and where."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from ckptconv.dtypes import DType
from ckptconv.engine.gather import Array, raw_dtype
from ckptconv.records import dataclass

__all__ = ["BLOCK", "Tile", "nans", "rank", "raw", "squares", "wide"]

BLOCK = 1 << 16
"""Elements looked at in float64 at a time; they stay in the second-level cache."""


@dataclass(slots=True)
class Tile:
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
        exact = a.dtype.kind in "iub" and b.dtype.kind in "iub"
        free = 0
        with np.errstate(all="ignore"):
            x, y = wide(a), wide(b)
            delta = np.abs(x - y)
            if exact or not np.isfinite(delta.max()):
                differ = a != b if exact else ~((x == y) | (np.isnan(x) & np.isnan(y)))
                free = self._add_unbounded(at, a, b, differ & ~np.isfinite(delta))
                delta[differ & (delta == 0)] = 1.0  # integers so large that float64 holds both as one
                delta[~(differ & np.isfinite(delta))] = 0.0
            count = int(np.count_nonzero(delta))
            self.count += count
            if any(tolerance):
                self.beyond += int(np.count_nonzero(delta > tolerance[0] + tolerance[1] * np.abs(y)))
            else:
                self.beyond += count
            if count:
                i = int(np.argmax(delta))
                found = float(delta[i]), -(self.lo + at + i), (_value(a[i]), _value(b[i]))
                self.largest = max(self.largest, found, key=rank)
            if a.dtype == b.dtype:
                self.bits += int(np.count_nonzero(raw(a) != raw(b))) - count - free
            self._sum(float(delta.sum()), float(np.dot(delta, delta)), squares(y))

    def _add_unbounded(self, at: int, a: Array, b: Array, where: Array) -> int:
        """Count the elements that differ by no finite number."""
        count = int(np.count_nonzero(where))
        self.count += count
        self.beyond += count
        self.unbounded += count
        if count and self.first is None:
            i = int(np.argmax(where))
            self.first = self.lo + at + i, (_value(a[i]), _value(b[i]))
        return count

    def _sum(self, total: float, squares: float, norm: float) -> None:
        self.sums = self.sums[0] + total, self.sums[1] + squares, self.sums[2] + norm


def rank(found: tuple[float, int, Any]) -> tuple[float, int]:
    """Order differences by size; of equal ones the first element counts."""
    return found[0], found[1]


def raw(values: Array) -> Array:
    """Return the same memory as unsigned integers."""
    return values.view(raw_dtype(values.dtype.itemsize))


def wide(values: Array) -> Array:
    """Return values in a type that holds each of them (64-bit integers aside, which are rounded)."""
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def squares(values: Array) -> float:
    """Return the sum of the squares of all finite values."""
    with np.errstate(all="ignore"):
        size = np.abs(values) if values.dtype.kind == "c" else values
        total = float(np.dot(size, size))
        if not isfinite(total):
            size = np.where(np.isfinite(size), size, 0.0)
            total = float(np.dot(size, size))
    return total


def _value(value: Any) -> Any:
    return (
        complex(value)
        if value.dtype.kind == "c"
        else int(value)
        if value.dtype.kind in "iub"
        else float(value)
    )


# Bits of the magnitude, and those of infinity: a larger magnitude is NaN.
_INFINITY = {
    "float64": (np.uint64(0x7FFF_FFFF_FFFF_FFFF), 0x7FF0_0000_0000_0000),
    "float32": (np.uint32(0x7FFF_FFFF), 0x7F80_0000),
    "float16": (np.uint16(0x7FFF), 0x7C00),
    "bfloat16": (np.uint16(0x7FFF), 0x7F80),
}


def nans(values: Array, dtype: DType) -> int:
    """Count NaNs."""
    if dtype.kind not in ("float", "complex"):
        return 0
    count = 0
    for at in range(0, values.size, BLOCK):
        block = values[at : at + BLOCK]
        if dtype.name in _INFINITY:
            mask, infinity = _INFINITY[dtype.name]
            size = raw(block) & mask
            if int(size.max()) > infinity:
                count += int((size > infinity).sum())
        else:
            count += int(np.isnan(block).sum())
    return count
