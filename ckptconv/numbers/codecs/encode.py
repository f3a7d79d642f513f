"""Quantise to FP8 (E4M3) in blocks, as DeepSeek publishes its models: codes, and a scale for each block."""

from __future__ import annotations

import numpy as np

from ckptconv.numbers.codecs.base import Array

__all__ = ["LARGEST", "LEAST", "e4m3_codes", "scales_of"]

LARGEST = 448.0
"""The largest number of E4M3."""

LEAST = 1e-4
"""The largest magnitude of a block is this at least (DeepSeek-V3, ``inference/kernel.py``, act_quant)."""


def scales_of(largest: Array, *, powers: bool) -> Array:
    """Return the scale of blocks from the largest magnitude of each, as float32.

    Args:
        largest: float32.
        powers: Whether scales are rounded up to powers of two (``ue8m0``).
    """
    scales: Array = np.maximum(largest, np.float32(LEAST)) / np.float32(LARGEST)
    if powers:
        mantissa, exponent = np.frexp(scales)
        scales = np.ldexp(np.float32(1), exponent - (mantissa == 0.5)).astype(np.float32)
    return scales


def e4m3_codes(values: Array, out: Array) -> None:
    """Round finite float32 values to E4M3, to nearest, ties to even; what is larger becomes the largest.

    Args:
        values: Overwritten.
        out: ``uint8``, of the same shape.
    """
    np.clip(values, np.float32(-LARGEST), np.float32(LARGEST), out=values)
    bits = values.view(np.uint32)
    sign = bits >> np.uint32(24)
    sign &= np.uint32(0x80)
    bits &= np.uint32(0x7FFF_FFFF)
    small = bits < np.uint32(121 << 23)  # below 2 ** -6 codes are multiples of 2 ** -9
    few = np.rint(values[small] * np.float32(512)).astype(np.uint8) if small.any() else None
    odd = bits >> np.uint32(20)
    odd &= np.uint32(1)
    bits += odd
    bits += np.uint32(0x7FFFF)
    bits >>= np.uint32(20)
    bits -= np.uint32(120 << 3)
    np.copyto(out, bits, casting="unsafe")
    if few is not None:
        out[small] = few
    np.copyto(odd, sign)
    out |= odd.astype(np.uint8)
