"""Decode codes of eight bits with a scale for each block, row, or matrix: FP8, INT8."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from ckptconv.numbers.codecs.base import (
    Array,
    BadCode,
    Codec,
    Params,
    Rect,
    checked_scales,
    narrow,
    round_into,
    spread,
)

__all__ = ["CODEC"]


_FEW = 1 << 16  # elements worked on at a time

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
    if height == 1 and (width < params["columns"] or right - left < _TABLED):
        _multiply(params, left, codes, scales, zeros, out)
        return
    if height == 1:
        _rows(params, codes, scales, zeros, out)
        return
    base = _columns(left, right, width)
    at = row
    while at < end:
        inside = at % period
        stop = min(end, at - inside + min(period, (inside // height + 1) * height))
        band = _band(params, at) - first
        part = slice(at - row, stop - row)
        s, z = scales[band : band + 1], None if zeros is None else zeros[band : band + 1]
        if (stop - at) * min(width, right - left) < _TABLED:
            _multiply(params, left, codes[part], s, z, out[part])
        else:
            _look_up(params, base, codes[part], s, z, out[part])
        at = stop


def _rows(params: Params, codes: Array, scales: Array, zeros: Array | None, out: Array) -> None:
    """Decode rows that have a scale each, by a table for each row."""
    rows = min(256, max(1, _FEW // codes.shape[1]))
    base = (np.arange(rows, dtype=np.uint16) * 256)[:, None]
    for at in range(0, codes.shape[0], rows):
        few = slice(at, min(at + rows, codes.shape[0]))
        z = None if zeros is None else zeros[few]
        _look_up(params, base[: few.stop - at], codes[few], scales[few], z, out[few])


def _columns(left: int, right: int, width: int) -> Array:
    """Return where in the tables of a band's blocks that of each column begins."""
    number = np.arange(left, right) // width - left // width
    return (number * 256).astype(np.uint16 if number[-1] < 256 else np.intp)


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


def _look_up(
    params: Params, base: Array, codes: Array, scales: Array, zeros: Array | None, out: Array
) -> None:
    """Decode rows of the same scales by the table of each block's values."""
    values = _values(codes.dtype.name) - (0 if zeros is None else zeros.reshape(-1, 1))
    with np.errstate(all="ignore"):
        values = values * scales.reshape(-1, 1)
        _divide(params, values)
    bits = narrow(values, out.dtype).view(f"u{out.itemsize}").reshape(-1)
    held, found = codes.view(np.uint8), out.view(bits.dtype)
    rows = max(1, _FEW // max(held.shape[1], 1))
    index = np.empty((rows, held.shape[1]), base.dtype)
    for at in range(0, held.shape[0], rows):
        few, here = held[at : at + rows], found[at : at + rows]
        if scales.size > 1:
            few = np.add(few, base, out=index[: len(few)], dtype=base.dtype, casting="unsafe")
        if here.flags.c_contiguous:
            np.take(bits, few, out=here, mode="clip")
        else:
            here[...] = np.take(bits, few, mode="clip")


def _multiply(
    params: Params, left: int, codes: Array, scales: Array, zeros: Array | None, out: Array
) -> None:
    """Decode rows of short blocks: values, then scales."""
    right, width = left + codes.shape[1], params["block"][1]
    first, held = left // width, codes.view(np.uint8)
    rows = max(1, _FEW // max(held.shape[1], 1))
    for at in range(0, held.shape[0], rows):
        few = slice(at, at + rows)
        own = few if len(scales) > 1 else slice(0, 1)
        values = _found(codes.dtype.name, held[few])
        with np.errstate(all="ignore"):
            if zeros is not None:
                values -= spread(zeros[own], width, left, right, first)
            values *= spread(scales[own], width, left, right, first)
            _divide(params, values)
        round_into(values, out[few])


def _divide(params: Params, values: Array) -> None:
    if params.get("divisor"):
        values /= np.float32(params["divisor"])


def _found(dtype: str, codes: Array) -> Array:
    """Return values of codes in memory of its own: two at a time where they lie so."""
    if codes.shape[1] % 2 or not codes.flags.c_contiguous or codes.ctypes.data % 2:
        return np.take(_values(dtype), codes, mode="clip")
    return np.take(_pairs(dtype), codes.view(np.uint16), mode="clip").view(np.float32)


@cache
def _pairs(dtype: str) -> Array:
    """Return the values of every two codes as one element."""
    values = _values(dtype)
    both = np.stack([np.tile(values, 256), np.repeat(values, 256)], axis=1)
    return np.ascontiguousarray(both).view(np.uint64).reshape(-1)


CODEC = Codec("scaled", needs, decode, (1, 1 << 20))
