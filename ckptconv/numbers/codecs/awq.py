"""Decode AWQ's integers (GEMM): a matrix ``[in, out]`` of four bits, eight columns of a row in a word."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckptconv.numbers.codecs.base import Array, Codec, Params, Rect, checked_scales, round_into
from ckptconv.numbers.codecs.bits import unpack_columns
from ckptconv.numbers.codecs.gptq import decode_groups

__all__ = ["CODEC"]


def needs(params: Params, rect: Rect) -> dict[str, Rect]:
    """Return words, and scales and zero points of the groups: ``group`` rows share them."""
    row, end, left, right = rect
    group = params["group"]
    rows, words = (row // group, -(-end // group)), (left // 8, -(-right // 8))
    return {"codes": (row, end, *words), "scales": (*rows, left, right), "zeros": (*rows, *words)}


def decode(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Take each row's zero points away, and multiply by its scales."""
    row, end, left, right = rect
    group = params["group"]
    values, zeros = (_unpack(tiles[role], left, right) for role in ("codes", "zeros"))
    number = np.arange(row, end) // group - row // group
    decode_groups(values, zeros, checked_scales(tiles["scales"], rect), number)
    round_into(values, out)


def _unpack(words: Array, left: int, right: int) -> Array:
    """Return the codes of columns as float32.

    The code at bit ``4 * i`` of a word is column ``(0, 2, 4, 6, 1, 3, 5, 7)[i]`` of its eight (AutoAWQ 0.2.9,
    ``utils/packing_utils.py``): the codes of its lower half take turns with those of the upper.
    """
    unsigned = words.view(np.uint32)
    low = _apart(unsigned & np.uint32(0xFFFF))
    low |= _apart(unsigned >> np.uint32(16)) << np.uint32(4)
    return unpack_columns(low.view(np.int32), left % 8, left % 8 + right - left, 4)


def _apart(halves: Array) -> Array:
    """Move four codes of four bits apart, so that as many of others fit between."""
    halves = (halves | halves << np.uint32(8)) & np.uint32(0x00FF00FF)
    apart: Array = (halves | halves << np.uint32(4)) & np.uint32(0x0F0F0F0F)
    return apart


CODEC = Codec("awq", needs, decode, (128, 1 << 18))
