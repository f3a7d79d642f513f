"""Compute codes and scales of matrices that are quantised in blocks, block row by block row."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from ckptconv.engine.gather import Array
from ckptconv.engine.terms import Read, blocks
from ckptconv.errors import FormatError
from ckptconv.numbers.codecs.encode import e4m3_codes, scales_of
from ckptconv.relations import InBlocks, Spec

__all__ = ["Encoder"]

_FEW = 1 << 16  # elements worked on at a time
_KEPT = 1 << 12  # block rows whose scales are kept for the tiles that follow


class Encoder:
    """Compute ranges of codes and of scales; safe to use from many threads.

    A block row is read once for the largest magnitudes of its blocks, and once more for its codes.

    Args:
        tensors: Shapes of the matrices.
        read: How to get at their values.
    """

    def __init__(self, tensors: Mapping[str, Spec], read: Read) -> None:
        self._tensors = tensors
        self._read = read
        self._kept: OrderedDict[tuple[str, int, bool], Array] = OrderedDict()
        self._lock = threading.Lock()

    def fill(self, term: InBlocks, lo: int, out: Array) -> None:
        """Compute elements ``lo`` and up into ``out``: ``uint8`` for codes, float32 for scales.

        Raises:
            FormatError: if a value is not finite.
        """
        _, columns = self._tensors[term.tensor].shape
        if term.part == "scales":
            width = -(-columns // term.block[1])
            done = 0
            while done < out.size:
                band, first = divmod(lo + done, width)
                part = self._scales(term, band)[first : first + out.size - done]
                out[done : done + part.size] = part
                done += part.size
            return
        for row, end, left, right in blocks(lo, lo + out.size, columns):
            at = row
            while at < end:
                stop = min(end, (at // term.block[0] + 1) * term.block[0])
                begin = at * columns + left - lo
                here = out[begin : begin + (stop - at - 1) * columns + right - left]
                self._codes(term, (at, stop, left, right), columns, here.reshape(stop - at, right - left))
                at = stop

    def _codes(self, term: InBlocks, part: tuple[int, int, int, int], columns: int, out: Array) -> None:
        """Compute the codes of rows of one block row."""
        row, end, left, right = part
        width = term.block[1]
        scales = self._scales(term, row // term.block[0])[left // width : -(-right // width)]
        wide = np.repeat(scales, width)[left % width : left % width + right - left]
        values = self._read(term.tensor, row * columns + left, (end - 1) * columns + right)
        values = values.reshape(out.shape)
        values /= wide
        e4m3_codes(values, out)

    def _scales(self, term: InBlocks, band: int) -> Array:
        """Return the scales of a block row."""
        key = (term.tensor, band, term.powers)
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                return kept
        (rows, columns), (height, width) = self._tensors[term.tensor].shape, term.block
        largest = np.zeros(columns, np.float32)
        step = max(1, _FEW // max(columns, 1))
        for row in range(band * height, min(rows, (band + 1) * height), step):
            end = min(rows, (band + 1) * height, row + step)
            values = self._read(term.tensor, row * columns, end * columns).reshape(-1, columns)
            np.maximum(largest, np.abs(values, out=values).max(axis=0), out=largest)
        if not np.isfinite(largest).all():
            column = int(np.flatnonzero(~np.isfinite(largest))[0])
            raise FormatError(
                f"{term.tensor}: rows {band * height} to {end - 1} of column {column} hold a value that is "
                "not finite, so it cannot be quantised",
                hint="leave out --quantize, or look at the training: NaN and infinity are no weights",
            )
        made = scales_of(np.maximum.reduceat(largest, np.arange(0, columns, width)), powers=term.powers)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made
