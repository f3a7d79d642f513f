"""Decode bitsandbytes' four bits (nf4, fp4): codes into a table, a scale for each run of elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ckptconv.numbers.codecs.base import Array, Codec, Params, Rect, checked_scales, round_into

__all__ = ["CODEC"]


def needs(params: Params, rect: Rect) -> dict[str, Rect]:
    """Return the bytes of whole rows, and their scales: ``block`` elements in a row of all share one.

    Scales may themselves be codes: ``nested`` of them share one, and ``offset`` is added.
    """
    row, end, _, _ = rect
    lo, hi = row * params["columns"], end * params["columns"]
    runs = (lo // params["block"], -(-hi // params["block"]))
    found = {"codes": (0, 1, lo // 2, -(-hi // 2)), "scales": (0, 1, *runs), "table": (0, 1, 0, 16)}
    if (nested := params.get("nested")) is not None:
        found["nested"] = (0, 1, runs[0] // nested, -(-runs[1] // nested))
        found["nested_table"] = (0, 1, 0, 256)
    return found


def decode(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Look codes up, the high four bits of a byte first, and multiply by the scales of their runs."""
    row, end, left, right = rect
    columns, block = params["columns"], params["block"]
    lo, hi = row * columns, end * columns
    first = lo // block
    scales = _scales(params, tiles, rect, first)
    table = checked_scales(tiles["table"], rect, "value of a code").reshape(-1)
    pairs = np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1).copy().view(np.uint64).reshape(-1)
    values = np.take(pairs, tiles["codes"].reshape(-1), mode="clip").view(np.float32)
    values = values[lo % 2 : lo % 2 + hi - lo]
    at = lo - first * block
    with np.errstate(all="ignore"):
        values *= np.repeat(scales, block)[at : at + hi - lo]
    round_into(values.reshape(end - row, columns)[:, left:right], out)


def _scales(params: Params, tiles: Mapping[str, Any], rect: Rect, first: int) -> Array:
    stored = tiles["scales"].reshape(-1)
    nested = params.get("nested")
    if nested is None:
        return checked_scales(stored, rect)
    outer = checked_scales(tiles["nested"], rect).reshape(-1)
    table = checked_scales(tiles["nested_table"], rect).reshape(-1)
    start = first - first // nested * nested
    wide = np.repeat(outer, nested)[start : start + stored.size]
    scales: Array = table[stored] * wide + np.float32(params["offset"])
    return checked_scales(scales, rect)


CODEC = Codec("bnb", needs, decode, (1, 1 << 16))
