"""Decode codes of eight bits with a scale for each block, row, or matrix: FP8, INT8."""

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

__all__ = ["CODEC"]

_FEW = 1 << 16  # elements worked on at a time: they stay in the second-level cache

# From so many codes of a scale on it is worth looking at the values of all 256.
_WORTH = 2048

# Magnitudes of codes from which on they stand for no finite number.
_ENDS = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7C}

# A float of eight bits, moved up so many bits, is a float32 but for the bias of the exponent: too small by
# this power of two, exactly so also where it is subnormal.
_FLOATS = {"float8_e4m3fn": (20, 127 - 7), "float8_e5m2": (21, 127 - 15)}


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
    row, end, left, _ = rect
    codes = tiles["codes"]
    _refuse_nan(codes, rect)
    scales = checked_scales(tiles["scales"], rect)
    zeros = tiles["zeros"].astype(np.float32) if "zeros" in tiles else None
    height, period, first = params["block"][0], params["period"], _band(params, row)
    if height == 1:
        _multiply(params, left, codes, scales, zeros, out)
        return
    at = row
    while at < end:
        inside = at % period
        stop = min(end, at - inside + min(period, (inside // height + 1) * height))
        band = _band(params, at) - first
        part = slice(at - row, stop - row)
        s, z = scales[band : band + 1], None if zeros is None else zeros[band : band + 1]
        _multiply(params, left, codes[part], s, z, out[part])
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


def _multiply(
    params: Params, left: int, codes: Array, scales: Array, zeros: Array | None, out: Array
) -> None:
    """Decode rows of which each has scales of its own, or all have the same: values, times scales.

    Arithmetic on many codes at a time: to look each up takes longer.
    """
    right, width = left + codes.shape[1], params["block"][1]
    first, power = left // width, _FLOATS.get(codes.dtype.name, (0, 0))[1]
    with np.errstate(all="ignore"):
        if power and zeros is None and np.isfinite(larger := scales * np.float32(2.0**power)).all():
            scales, power = larger, 0
        simple = power == 0 and out.dtype.name == "bfloat16" and _never_ties(params, codes, scales, zeros)
        rows = max(1, _FEW // max(codes.shape[1], 1))
        room = np.empty((min(rows, codes.shape[0]), codes.shape[1]), np.int32)
        factors = minus = None
        for at in range(0, codes.shape[0], rows):
            few = slice(at, min(at + rows, codes.shape[0]))
            if factors is None or len(scales) > 1:
                own = few if len(scales) > 1 else slice(0, 1)
                factors = spread(scales[own], width, left, right, first)
                minus = None if zeros is None else spread(zeros[own], width, left, right, first)
            values = _values(codes[few], room[: few.stop - at])
            if power:
                values *= np.float32(2.0**power)
            if minus is not None:
                values -= minus
            values *= factors
            if params.get("divisor"):
                values /= np.float32(params["divisor"])
            if simple:
                _round_up_half(values, out[few])
            else:
                round_into(values, out[few])


def _never_ties(params: Params, codes: Array, scales: Array, zeros: Array | None) -> bool:
    """Whether no code's value lies half way between two of bfloat16; False where that takes long to tell."""
    if zeros is not None or params.get("divisor") or codes.size < _WORTH * scales.size:
        return False
    every = np.arange(256, dtype=np.uint8).view(codes.dtype)
    products = _values(every, np.empty(256, np.int32)) * scales.reshape(-1, 1)
    return not bool((products.view(np.uint32) & 0xFFFF == 0x8000).any())


def _round_up_half(values: Array, out: Array) -> None:
    """Round to bfloat16, what lies half way upwards, in a third of the passes that ties to even take."""
    bits = values.view(np.uint32)
    bits += np.uint32(0x8000)
    bits >>= np.uint32(16)
    np.copyto(out.view(np.uint16), bits, casting="unsafe")


def _values(codes: Array, room: Array) -> Array:
    """Return codes as float32 in ``room``, of int32; floats are too small by a power of two."""
    if codes.dtype.name not in _FLOATS:
        values: Array = room.view(np.float32)
        np.copyto(values, codes)
        return values
    bits, _ = _FLOATS[codes.dtype.name]
    np.copyto(room, codes.view(np.int8))
    np.left_shift(room, bits, out=room)
    np.bitwise_and(room, np.int32(-(1 << 31) | 0x7F << bits), out=room)
    return room.view(np.float32)


CODEC = Codec("scaled", needs, decode, (1, 1 << 20))
