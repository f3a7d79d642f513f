"""Add terms to a tile's values, with results that do not depend on the tile."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ckptconv.engine.gather import Array
from ckptconv.relations import Spec
from ckptconv.relations.terms import Constant, LowRank, Scaled, Term

__all__ = ["Adder", "blocks"]

# Elements worked on at a time: the sum, a product and its factors stay in the second-level cache.
_BLOCK = 1 << 15

# Bytes of operands kept for the tiles that follow; one that is larger is kept alone.
_KEPT = 32 << 20

Read = Callable[[str, int, int], Array]
"""Return elements ``lo`` up to ``hi`` of a named tensor as float32."""

Block = tuple[int, int, int, int]
"""First row, end of rows, first column, end of columns."""


def blocks(lo: int, hi: int, columns: int) -> Iterator[Block]:
    """Cut the flat elements ``lo`` up to ``hi`` of a matrix into blocks of rows or of parts of one row."""
    while lo < hi:
        row, column = divmod(lo, columns)
        rows = min((hi - lo) // columns, _BLOCK // columns)
        if column or rows == 0:
            end = min(columns, column + hi - lo, column + _BLOCK)
            yield row, row + 1, column, end
            lo += end - column
        else:
            yield row, row + rows, 0, columns
            lo += rows * columns


class Adder:
    """Compute the sum of a tensor's terms, block by block; safe to use from many threads.

    Products are summed over the rank in order, each step rounded to float32 for itself. A BLAS would be
    faster, but its results depend on the shape of the block it is given and on the machine.

    Args:
        tensors: Shapes of the operands.
        read: How to get at their values.
    """

    def __init__(self, tensors: Mapping[str, Spec], read: Read) -> None:
        self._tensors = tensors
        self._read = read
        self._kept: OrderedDict[tuple[str, bool], Array] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, terms: Sequence[Term], block: Block, columns: int, values: Array) -> None:
        """Add the sum of ``terms`` to ``values``: float32, the elements of ``block`` of a matrix, flat."""
        with np.errstate(all="ignore"):
            total = self._term(terms[0], block, columns).reshape(-1)
            for term in terms[1:]:
                total += self._term(term, block, columns).reshape(-1)
            values += total

    def _term(self, term: Term, block: Block, columns: int) -> Array:
        row, end, left, right = block
        if isinstance(term, Constant):
            return np.full((end - row, right - left), term.value, np.float32)
        if not isinstance(term, (Scaled, LowRank)):
            raise AssertionError("what is quantised in blocks, or a mean, is no sum")
        scale = np.float32(term.scale)
        if isinstance(term, Scaled):
            scaled: Array = self._read(term.tensor, row * columns + left, (end - 1) * columns + right) * scale
            return scaled
        rows = self._rows(term, row, end)
        factors = self._whole(term)
        total = np.multiply(rows[:, :1], factors[0, left:right])
        product = np.empty_like(total)
        for k in range(1, len(factors)):
            np.multiply(rows[:, k : k + 1], factors[k, left:right], out=product)
            total += product
        total *= scale
        return total

    def _rows(self, term: LowRank, row: int, end: int) -> Array:
        """Return the factor that differs from row to row: ``[rows, r]``."""
        if not term.transposed:
            rank = self._tensors[term.b].shape[1]
            return self._read(term.b, row * rank, end * rank).reshape(-1, rank)
        rank, length = self._tensors[term.a].shape
        return np.stack([self._read(term.a, k * length + row, k * length + end) for k in range(rank)], axis=1)

    def _whole(self, term: LowRank) -> Array:
        """Return the factor that all rows share: ``[r, columns]``."""
        name = term.b if term.transposed else term.a
        key = (name, term.transposed)
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
        spec = self._tensors[name]
        values = self._read(name, 0, spec.numel).reshape(spec.shape)
        if term.transposed:
            values = np.ascontiguousarray(values.T)
        with self._lock:
            self._kept[key] = values
            while len(self._kept) > 1 and sum(v.nbytes for v in self._kept.values()) > _KEPT:
                self._kept.popitem(last=False)
        return values
