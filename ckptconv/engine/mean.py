"""Compute weighted means of tensors, run by run, with results that do not depend on the run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ckptconv.dtypes import BY_NAME, DType, numpy_dtype
from ckptconv.engine.gather import Array
from ckptconv.engine.terms import Read
from ckptconv.numbers.casts import cast
from ckptconv.relations import Mean

__all__ = ["fill_mean"]

_FLOAT32 = BY_NAME["float32"]

# Elements worked on at a time: enough for a disk to read in one go, and at most as much as a tile's buffers
# are counted for (a sum and one tensor's values, stored and as float32, beside what is written).
_MOST, _LEAST = 1 << 18, 1 << 12


def fill_mean(
    term: Mean, lo: int, dtype: DType, out: Array, read: Read, infinite: Callable[[Array, Array, DType], int]
) -> int:
    """Compute elements ``lo`` and up of a mean into ``out``; return how many became infinite.

    Tensors are read one after the other, so that memory does not grow with their number.

    Args:
        term: The mean.
        lo: The first element.
        dtype: What is written; rounded once, from float32.
        out: Bytes of as many elements.
        read: How to get at the tensors' values; each time in memory of its own.
        infinite: Counts what became infinite between a sum and what is written.
    """
    result = out.view(numpy_dtype(dtype))
    step = max(_LEAST, min(_MOST, out.nbytes // 4))
    overflows = 0
    for at in range(0, result.size, step):
        stop = min(result.size, at + step)
        total = _sum(term, lo + at, lo + stop, read)
        cast(total, _FLOAT32, dtype, out=result[at:stop])
        overflows += infinite(total, result[at:stop], dtype)
    return overflows


def _sum(term: Mean, lo: int, hi: int, read: Read) -> Array:
    total: Array | None = None
    with np.errstate(all="ignore"):
        for name, ratio in zip(term.tensors, term.ratios, strict=True):
            values = read(name, lo, hi)
            values *= np.float32(ratio)
            if total is None:
                total = values
            else:
                total += values
    assert total is not None
    return total
