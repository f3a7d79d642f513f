"""Decode AWQ's integers (GEMM): a matrix ``[in, out]`` of four bits, eight columns of a row in a word."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckptconv.numbers.codecs.base import Array, Codec, Params, Rect, checked_scales, round_into
from ckptconv.numbers.codecs.bits import unpack_columns, unpack_rows
from ckptconv.numbers.codecs.gptq import decode_groups, turned_groups

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
    values, zeros = (_unpack(tiles[role], left, right) for role in ("codes", "zeros"))
    decode_groups(values, zeros, checked_scales(tiles["scales"], rect), _number(params, row, end))
    round_into(values, out)


def turned(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Do the same for columns: words are turned first, so that each code of a word is a row of its own."""
    row, end, left, right = rect
    words = np.ascontiguousarray(tiles["codes"].T)
    shuffled = unpack_rows(_in_order(words), 0, len(words) * 8, 4)
    values, zeros = shuffled[left % 8 : left % 8 + right - left], _unpack(tiles["zeros"], left, right)
    turned_groups(values, zeros, checked_scales(tiles["scales"], rect), _number(params, row, end))
    round_into(values, out)


def _number(params: Params, row: int, end: int) -> Array:
    """Return the group of each row, counted from that of the first."""
    found: Array = np.arange(row, end) // params["group"] - row // params["group"]
    return found


def _unpack(words: Array, left: int, right: int) -> Array:
    """Return the codes of columns as float32."""
    return unpack_columns(_in_order(words), left % 8, left % 8 + right - left, 4)


def _in_order(words: Array) -> Array:
    """Return words with their codes in the order of the columns.

    The code at bit ``4 * i`` of a word is column ``(0, 2, 4, 6, 1, 3, 5, 7)[i]`` of its eight (AutoAWQ 0.2.9,
    ``utils/packing_utils.py``): a perfect shuffle, undone by two swaps.
    """
    found = words.view(np.uint32).copy()
    _swap(found, 8, 0x0000FF00)
    _swap(found, 4, 0x00F000F0)
    ordered: Array = found.view(np.int32)
    return ordered


def _swap(words: Array, distance: int, mask: int) -> None:
    """Swap the bits of a mask with those so many places above, in place."""
    apart = words >> np.uint32(distance)
    apart ^= words
    apart &= np.uint32(mask)
    words ^= apart
    apart <<= np.uint32(distance)
    words ^= apart


CODEC = Codec("awq", needs, decode, (128, 1 << 19), turned)
