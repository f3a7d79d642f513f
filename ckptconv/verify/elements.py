"""Compare elements: how many differ, by how much, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptconv.dtypes import DType
from ckptconv.engine.gather import Array, raw_dtype

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
        x, y = wide(a), wide(b)
        alike = a.dtype == b.dtype
        with np.errstate(all="ignore"):
            if a.dtype.kind in "iub" and b.dtype.kind in "iub":
                differ = a != b
            else:
                differ = ~((x == y) | (np.isnan(x) & np.isnan(y)))
            if alike:
                self.bits += int((raw(a) != raw(b)).sum() - differ.sum())
            norm = squares(y)
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
                self.largest = max(self.largest, found, key=rank)
            self._sum(float(delta.sum()), float(np.dot(delta, delta)), norm)

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
    size = np.abs(values)
    size[~np.isfinite(size)] = 0.0
    return float(np.dot(size, size))


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
