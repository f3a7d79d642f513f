"""Decode integers of 2 to 8 bits packed along the columns of a matrix: compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckptconv.numbers.codecs.base import (
    Array,
    BadCode,
    Codec,
    Params,
    Rect,
    checked_scales,
    round_into,
    spread,
)
from ckptconv.numbers.codecs.bits import unpack_columns, unpack_rows, word_range

__all__ = ["CODEC"]


def needs(params: Params, rect: Rect) -> dict[str, Rect]:
    """Return words, scales, zero points and group numbers of a part.

    ``bits`` are those of a code, ``dense`` whether codes run on over the ends of words, ``group`` the columns
    that share a scale, ``groups`` how many groups there are, ``shared`` whether all rows share the scales.
    """
    row, end, left, right = rect
    bits, dense, group = params["bits"], params["dense"], params["group"]
    ordered, groups = params.get("ordered"), params["groups"]
    columns = (0, groups) if ordered else (left // group, -(-right // group))
    rows = (0, 1) if params.get("shared") else (row, end)
    found = {
        "codes": (row, end, *word_range(left, right, bits, dense=dense)),
        "scales": (*rows, *columns),
    }
    if params.get("zeros"):
        found["zeros"] = (*word_range(*rows, bits, dense=dense), *columns)
    if ordered:
        found["order"] = (0, 1, left, right)
    return found


def decode(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Take the zero point away (half of the range where there is none), and multiply by the scale."""
    row, end, left, right = rect
    bits, dense, group = params["bits"], params["dense"], params["group"]
    scales = checked_scales(tiles["scales"], rect)
    half = 0 if params.get("zeros") else 1 << bits - 1
    values = unpack_columns(tiles["codes"], left, right, bits, dense=dense, less=half)
    rows = (0, 1) if params.get("shared") else (row, end)
    zeros = unpack_rows(tiles["zeros"], *rows, bits, dense=dense) if "zeros" in tiles else None
    if "order" in tiles:
        number = _numbers(tiles["order"], params, rect)
        scales = scales[:, number]
        zeros = None if zeros is None else zeros[:, number]
    else:
        first = left // group
        scales = spread(scales, group, left, right, first)
        zeros = None if zeros is None else spread(zeros, group, left, right, first)
    with np.errstate(all="ignore"):
        if zeros is not None:
            values -= zeros
        values *= scales
    round_into(values, out)


def _numbers(order: Array, params: Params, rect: Rect) -> Array:
    """Return the group of each column; -1 for all of them says that they are in order.

    Raises:
        BadCode: if there is no such group.
    """
    number = order.reshape(-1).astype(np.int64)
    if (number == -1).all():
        return np.arange(rect[2], rect[3]) // int(params["group"])
    bad = np.flatnonzero((number < 0) | (number >= params["groups"]))
    if bad.size:
        column = rect[2] + int(bad[0])
        text = f"column {column} is of group {int(number[bad[0]])}, of {params['groups']}"
        raise BadCode(text, rect[0], column)
    return number


CODEC = Codec("packed", needs, decode, (1, 1 << 18))
