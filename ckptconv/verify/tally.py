"""Collect what differs, one entry a tensor, from many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import replace

import numpy as np

from ckptconv.engine.gather import Array
from ckptconv.records import dataclass
from ckptconv.verify.result import Mismatch

__all__ = ["Tally"]

Describe = Callable[[int], Mismatch]
"""Make the mismatch whose first element is known, from the number of all that differ."""


@dataclass(slots=True)
class _Entry:
    first: int
    count: int
    largest: float | None
    describe: Describe


class Tally:
    """Sum up the differences of each tensor; safe to use from many threads."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}
        self._lock = threading.Lock()

    def add(
        self, key: Hashable, first: int, where: Array, ours: Array, theirs: Array, describe: Describe
    ) -> None:
        """Add the differences found in one tile.

        Args:
            key: What they belong to.
            first: Flat index in the tensor of the first.
            where: Indices into ``ours`` and ``theirs`` of all.
            ours: Values as they must be.
            theirs: Values as they are.
            describe: Describes them if no other tile has an earlier one.
        """
        largest = _largest(ours[where], theirs[where])
        with self._lock:
            held = self._entries.get(key)
            if held is None:
                self._entries[key] = _Entry(first, int(where.size), largest, describe)
                return
            held.count += int(where.size)
            if largest is not None:
                held.largest = max(largest, held.largest or 0.0)
            if first < held.first:
                held.first, held.describe = first, describe

    def found(self) -> list[Mismatch]:
        """Return everything collected."""
        return [
            replace(e.describe(e.count), count=e.count, largest=e.largest) for e in self._entries.values()
        ]


def _largest(ours: Array, theirs: Array) -> float | None:
    """Return the largest absolute difference where both values are finite."""
    kind = np.complex128 if ours.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        a, b = ours.astype(kind), theirs.astype(kind)
        finite = np.isfinite(a) & np.isfinite(b)
        return float(np.abs(a[finite] - b[finite]).max()) if finite.any() else None
