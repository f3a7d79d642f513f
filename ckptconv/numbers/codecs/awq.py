"""Decode AWQ's integers (GEMM): a matrix ``[in, out]`` of four bits, eight columns of a row in a word."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckptconv.numbers.codecs.base import Array, Params, Rect, checked_scales, round_into
from ckptconv.numbers.codecs.gptq import decode_groups

__all__ = ["NAME", "decode", "needs"]

NAME = "awq"

# The column, of eight in a word, whose code begins at bit 4 * i (AutoAWQ 0.2.9, utils/packing_utils.py).
_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def needs(params: Params, rect: Rect) -> dict[str, Rect]:
    """Return words, and scales and zero points of the groups: ``group`` rows share them."""
    row, end, left, right = rect
    group = params["group"]
    rows, words = (row // group, -(-end // group)), (left // 8, -(-right // 8))
    return {"codes": (row, end, *words), "scales": (*rows, left, right), "zeros": (*rows, *words)}


def decode(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Take each row's zero points away, and multiply by its scales."""
    row, end, left, right = rect
    group, start, width = params["group"], left % 8, right - left
    values = _unpack(tiles["codes"])[:, start : start + width]
    zeros = _unpack(tiles["zeros"])[:, start : start + width]
    number = np.arange(row, end) // group - row // group
    if not values.flags.c_contiguous:
        values = np.ascontiguousarray(values)
    decode_groups(values, zeros, checked_scales(tiles["scales"], rect), number)
    round_into(values, out)


def _unpack(words: Array) -> Array:
    """Return the codes of words ``[rows, words]`` in the order of their columns, as float32."""
    unsigned = words.view(np.uint32)
    out = np.empty((*unsigned.shape, 8), np.float32)
    scratch = np.empty_like(unsigned)
    for i, column in enumerate(_COLUMNS):
        np.right_shift(unsigned, np.uint32(4 * i), out=scratch)
        scratch &= np.uint32(15)
        out[:, :, column] = scratch
    return out.reshape(unsigned.shape[0], -1)
