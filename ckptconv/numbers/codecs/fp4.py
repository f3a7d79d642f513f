"""Decode codes of four bits that are small floating-point numbers (E2M1): NVFP4, MXFP4."""

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


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

# The two values of a byte, the low four bits first, as one element of 64 bits.
_PAIRS = np.stack([np.tile(_E2M1, 16), np.repeat(_E2M1, 16)], axis=1).copy().view(np.uint64).reshape(-1)


def needs(params: Params, rect: Rect) -> dict[str, Rect]:
    """Return the bytes and the scales of a part: ``group`` columns share one."""
    row, end, left, right = rect
    group = params["group"]
    found = {
        "codes": (row, end, left // 2, -(-right // 2)),
        "scales": (row, end, left // group, -(-right // group)),
    }
    if params.get("whole"):
        found["whole"] = (0, 1, 0, 1)
    return found


def decode(params: Params, rect: Rect, tiles: Mapping[str, Array], out: Array) -> None:
    """Multiply by the scales, which another one for all multiplies or (``whole``: ``divides``) divides."""
    _, _, left, right = rect
    group = params["group"]
    scales = checked_scales(tiles["scales"], rect)
    if params.get("whole"):
        whole = checked_scales(tiles["whole"], rect, "scale of the whole")[0, 0]
        with np.errstate(all="ignore"):
            scales = scales / whole if params["whole"] == "divides" else scales * whole
        if not np.isfinite(scales).all():
            raise BadCode(f"a scale and that of the whole, {whole}, give no number", rect[0], left)
    codes = tiles["codes"]
    values = np.take(_PAIRS, codes, mode="clip").view(np.float32)
    values = values.reshape(codes.shape[0], -1)[:, left % 2 : left % 2 + right - left]
    with np.errstate(all="ignore"):
        values *= spread(scales, group, left, right, left // group)
    round_into(values, out)


CODEC = Codec("fp4", needs, decode, (1, 1 << 18))
