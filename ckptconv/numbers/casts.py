"""Round and widen floating-point elements exactly as torch does, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptconv.dtypes import BY_NAME, DType, numpy_dtype

__all__ = ["cast", "cast_chain", "is_exact"]

_BLOCK = 1 << 16  # elements; source, result and mask of a block stay in the second-level cache

_FLOAT32 = BY_NAME["float32"]

# From so many elements on, a type of 16 bits or less is cast by looking its values up, where converting each
# takes a branch or more; to widen bfloat16 takes none.
_LOOK_UP = 1 << 17
_WIDENED = ("bfloat16", "float32")

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

# Significand bits (with the hidden one) and exponent bits: a cast to at least as many of both is exact.
_PRECISION = {
    "float64": (53, 11),
    "float32": (24, 8),
    "float16": (11, 5),
    "bfloat16": (8, 8),
    "float8_e4m3fn": (4, 4),
    "float8_e5m2": (3, 5),
    "float8_e8m0fnu": (1, 8),
    "float8_e4m3fnuz": (4, 4),
    "float8_e5m2fnuz": (3, 5),
}


def is_exact(source: DType, target: DType) -> bool:
    """Whether every value of ``source`` has the same value in ``target``."""
    if source == target:
        return True
    if source.kind == target.kind == "int":
        signed = source.name.startswith("int") == target.name.startswith("int")
        return signed and source.itemsize <= target.itemsize
    if source.kind != "float" or target.kind != "float":
        return False
    return all(a <= b for a, b in zip(_PRECISION[source.name], _PRECISION[target.name], strict=True))


def cast(values: Array, source: DType, target: DType, out: Array | None = None) -> Array:
    """Convert a flat array of ``source`` elements to ``target``: round to nearest, ties to even.

    Bit-equal to ``torch.Tensor.to`` of torch 2.13 for every number, also for overflow to infinity and for
    subnormals; a NaN becomes the NaN torch's vectorised x86 code writes (``0xFFFF`` in bfloat16).

    Args:
        values: One-dimensional, contiguous, of the numpy dtype of ``source``.
        source: A floating-point type, or an integer's.
        target: A floating-point type, or one of integers that holds every value of ``source``.
        out: Where the result goes; a new array if None.

    Returns:
        ``out``, or ``values`` itself if nothing is to be done and ``out`` is None.
    """
    if source == target:
        if out is None:
            return values
        out[...] = values
        return out
    is_float = source.kind == target.kind == "float"
    if not is_float and not is_exact(source, target):
        raise ValueError(f"{source} to {target} is neither a cast between floating-point types nor exact")
    if out is None:
        out = np.empty(values.shape, numpy_dtype(target))
    if not is_float:
        out[...] = values
        return out
    names = (source.name, target.name)
    if values.size >= _LOOK_UP and source.itemsize <= 2 and target.itemsize <= 4 and names != _WIDENED:
        _look_up(values, source, target, out)
        return out
    via = values
    if (source.name == "float64" and target.itemsize < 4) or (source.itemsize < 4 and target.itemsize < 4):
        via = cast(values, source, _FLOAT32)  # torch rounds through float32 here, and so twice
        source = _FLOAT32
    with np.errstate(all="ignore"):
        for lo in range(0, via.size, _BLOCK):
            block, result = via[lo : lo + _BLOCK], out[lo : lo + _BLOCK]
            np.copyto(result, block, casting="unsafe")
            if source.name == "float32" and target.itemsize == 2:
                nan = np.isnan(block)
                if nan.any():
                    bits = result.view(np.uint16)
                    bits[nan] = 0xFFFF if target.name == "bfloat16" else bits[nan] | 0x0200
    return out


def _look_up(values: Array, source: DType, target: DType, out: Array) -> None:
    codes, found = values.view(f"u{source.itemsize}"), out.view(f"u{target.itemsize}")
    table = _table(source, target)
    for lo in range(0, codes.size, _BLOCK):
        np.take(table, codes[lo : lo + _BLOCK], out=found[lo : lo + _BLOCK], mode="clip")


@cache
def _table(source: DType, target: DType) -> Array:
    """Return the bits in ``target`` of every bit pattern of ``source``."""
    codes = np.arange(1 << 8 * source.itemsize).astype(f"u{source.itemsize}")
    return cast(codes.view(numpy_dtype(source)), source, target).view(f"u{target.itemsize}")


def cast_chain(values: Array, dtypes: Sequence[DType], out: Array) -> None:
    """Cast through each of ``dtypes`` in turn into ``out``; the first is what ``values`` holds."""
    *steps, last = pairwise(dtypes)
    for source, target in steps:
        values = cast(values, source, target)
    cast(values, *last, out=out)
