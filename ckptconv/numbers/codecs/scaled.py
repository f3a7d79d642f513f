"""Decode codes of eight bits with a scale for each block, row, or matrix: FP8, INT8."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from ckptconv.numbers.codecs.base import Array, BadCode, Params, Rect, checked_scales, narrow, round_into

__all__ = ["NAME", "decode", "needs"]

NAME = "scaled"

# A block of so many elements is looked up in a table of its own 256 values.
_TABLED = 2048

# Magnitudes of codes from which on they stand for no finite number.
_ENDS = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7C}


def needs(params: Params, rect: Rect) -> dict[str, Rect]:
    """Return the codes of a part, and the scales of the blocks it touches.

    ``period`` rows are one matrix of several that lie one after the other (experts): each begins with a block
    of its own. ``block`` is the rows and columns that share a scale; ``divisor`` divides what is scaled.
    """
    row, end, left, right = rect
    _, width = params["block"]
    tiles = (_band(params, row), _band(params, end - 1) + 1, left // width, -(-right // width))
    found = {"codes": rect, "scales": tiles}
    if params.get("zeros"):
        found["zeros"] = tiles
    return found


def _band(params: Params, row: int) -> int:
    """Return the row of scales that a row has."""
    period, height = params["period"], params["block"][0]
    matrix, inside = divmod(row, period)
    return int(matrix * -(-period // height) + inside // height)


def decode(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Decode band by band: rows that have the same scales."""
    row, end, left, right = rect
    codes = tiles["codes"]
    _refuse_nan(codes, rect)
    scales = checked_scales(tiles["scales"], rect)
    zeros = tiles["zeros"].astype(np.float32) if "zeros" in tiles else None
    height, width = params["block"]
    period, first = params["period"], _band(params, row)
    if height == 1 and min(width, right - left) < _TABLED:
        _multiply(params, left, codes, scales, zeros, out)
        return
    at = row
    while at < end:
        inside = at % period
        stop = min(end, at - inside + min(period, (inside // height + 1) * height))
        band = _band(params, at) - first
        part = slice(at - row, stop - row)
        s, z = scales[band : band + 1], None if zeros is None else zeros[band : band + 1]
        short = (stop - at) * min(width, right - left) < _TABLED
        (_multiply if short else _look_up)(params, left, codes[part], s, z, out[part])
        at = stop


def _refuse_nan(codes: Array, rect: Rect) -> None:
    end = _ENDS.get(codes.dtype.name)
    if end is None:
        return
    size = codes.view(np.uint8) & np.uint8(0x7F)
    if int(size.max(initial=0)) >= end:
        row, column = np.argwhere(size >= end)[0]
        code = int(codes.view(np.uint8)[row, column])
        raise BadCode(f"the code {code:#04x} is not a number", rect[0] + int(row), rect[2] + int(column))


@cache
def _values(dtype: str) -> Array:
    """Return the value of every code of a type, NaN among them, by its bits."""
    codes = np.arange(256, dtype=np.uint8)
    if dtype == "int8":
        return codes.view(np.int8).astype(np.float32)
    if dtype == "uint8":
        return codes.astype(np.float32)
    import ml_dtypes

    with np.errstate(all="ignore"):
        values: Array = codes.view(getattr(ml_dtypes, dtype)).astype(np.float32)
    end = _ENDS[dtype]
    values[(codes & 0x7F) >= end] = 0  # never looked up
    return values


def _scaled(params: Params, values: Array, scales: Array, zeros: Array | None) -> Array:
    if zeros is not None:
        values = values - zeros
    with np.errstate(all="ignore"):
        found: Array = values * scales
        if params.get("divisor"):
            found /= np.float32(params["divisor"])
    return found


def _look_up(params: Params, left: int, codes: Array, scales: Array, zeros: Array | None, out: Array) -> None:
    """Decode rows of the same scales by the table of each block's values."""
    z = None if zeros is None else zeros.reshape(-1, 1)
    tables = narrow(_scaled(params, _values(codes.dtype.name), scales.reshape(-1, 1), z), out.dtype)
    bits = tables.view(f"u{out.itemsize}").reshape(-1)
    if len(tables) == 1:
        index: Array = codes.view(np.uint8)
    else:
        width = params["block"][1]
        columns = np.arange(left, left + codes.shape[1]) // width - left // width
        index = np.add(codes.view(np.uint8), (columns * 256)[None, :], dtype=np.intp)
    found = out.view(bits.dtype)
    if out.flags.c_contiguous:
        np.take(bits, index, out=found, mode="clip")
    else:
        found[...] = np.take(bits, index, mode="clip")


def _multiply(
    params: Params, left: int, codes: Array, scales: Array, zeros: Array | None, out: Array
) -> None:
    """Decode rows of short blocks: values, then scales."""
    right, width = left + codes.shape[1], params["block"][1]
    values = np.take(_values(codes.dtype.name), codes.view(np.uint8), mode="clip")
    start = left % width

    def wide(few: Array) -> Array:
        if few.shape[1] == 1:
            return few
        return np.repeat(few, width, axis=1)[:, start : start + right - left]

    z = None if zeros is None else wide(zeros)
    round_into(_scaled(params, values, wide(scales), z), out)
