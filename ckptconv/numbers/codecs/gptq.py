"""Decode GPTQ's integers: a matrix ``[in, out]`` packed along its rows, groups of rows in any order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckptconv.numbers.codecs.base import Array, BadCode, Codec, Params, Rect, checked_scales, round_into
from ckptconv.numbers.codecs.bits import unpack_columns, unpack_rows, word_range

__all__ = ["CODEC", "decode_groups", "turned_groups"]


def needs(params: Params, rect: Rect) -> dict[str, Rect]:
    """Return words, all groups' scales and zero points for its columns, and the groups of its rows.

    ``bits`` are those of a code, ``groups`` how many groups of rows there are, ``group`` the rows of each
    where they are in order, ``plus`` what is added to a stored zero point: 1, 0 in GPTQ's second format.
    """
    row, end, left, right = rect
    bits, groups = params["bits"], params["groups"]
    found = {
        "codes": (*word_range(row, end, bits), left, right),
        "scales": (0, groups, left, right),
        "zeros": (0, groups, *word_range(left, right, bits)),
    }
    if not params.get("group"):
        found["order"] = (0, 1, row, end)
    return found


def decode(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Take each row's zero points away, and multiply by its scales."""
    row, end, _, _ = rect
    bits = params["bits"]
    number, zeros, scales = _groups(params, rect, tiles)
    values = unpack_rows(tiles["codes"], row, end, bits)
    decode_groups(values, zeros, scales, number)
    round_into(values, out)


def turned(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Do the same for columns: their words are turned first, which are a fraction of the values."""
    row, end, _, _ = rect
    number, zeros, scales = _groups(params, rect, tiles)
    values = unpack_columns(np.ascontiguousarray(tiles["codes"].T), row, end, params["bits"])
    turned_groups(values, zeros, scales, number)
    round_into(values, out)


def _groups(params: Params, rect: Rect, tiles: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """Return the group of each row, and the zero points and scales ``[groups, columns]`` of those there are.

    Raises:
        BadCode: if a row is of a group that there is not.
    """
    row, end, left, right = rect
    if (group := params.get("group")) is not None:
        number = np.arange(row, end) // int(group)
    else:
        number = tiles["order"].reshape(-1).astype(np.int64)
    bad = np.flatnonzero((number < 0) | (number >= params["groups"]))
    if bad.size:
        text = f"row {row + int(bad[0])} is of group {int(number[bad[0]])}, of {params['groups']}"
        raise BadCode(text, row + int(bad[0]), left)
    held = slice(int(number.min()), int(number.max()) + 1)
    zeros = unpack_columns(tiles["zeros"][held], left, right, params["bits"], less=-params["plus"])
    return number - held.start, zeros, checked_scales(tiles["scales"][held], rect)


def decode_groups(values: Array, zeros: Array, scales: Array, number: Array) -> None:
    """Take zero points away from rows and multiply by scales, those of each row's group, in place."""
    ends = np.flatnonzero(np.diff(number)) + 1
    with np.errstate(all="ignore"):
        if len(ends) * 4 > len(number):
            values -= zeros[number]
            values *= scales[number]
            return
        for at, stop in zip((0, *ends), (*ends, len(number)), strict=True):
            values[at:stop] -= zeros[number[at]]
            values[at:stop] *= scales[number[at]]


def turned_groups(values: Array, zeros: Array, scales: Array, number: Array) -> None:
    """Do as `decode_groups`, for values ``[columns, rows]``."""
    zeros, scales = np.ascontiguousarray(zeros.T), np.ascontiguousarray(scales.T)
    ends = np.flatnonzero(np.diff(number)) + 1
    with np.errstate(all="ignore"):
        if len(ends) * 4 > len(number):
            values -= zeros[:, number]
            values *= scales[:, number]
            return
        rows = np.diff((0, *ends, len(number)))  # of each group
        number = number[[0, *ends]]
        values -= np.repeat(zeros[:, number], rows, axis=1)
        values *= np.repeat(scales[:, number], rows, axis=1)


CODEC = Codec("gptq", needs, decode, (256, 1 << 19), turned)
