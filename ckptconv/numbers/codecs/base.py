"""Say what a codec is: codes, scales and what else is stored of a matrix, to its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ckptconv.records import dataclass

__all__ = [
    "Array",
    "BadCode",
    "Codec",
    "Params",
    "Rect",
    "as_float32",
    "checked_scales",
    "narrow",
    "round_into",
    "spread",
]

if TYPE_CHECKING:
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]
else:
    Array = Any  # numpy is loaded when something is computed

Params: TypeAlias = Mapping[str, Any]
"""What a codec has to know of one matrix: plain numbers and words, so that a plan can print and hash them."""

Rect: TypeAlias = tuple[int, int, int, int]
"""A part of a matrix: first row, end of rows, first column, end of columns."""


class BadCode(ValueError):
    """Say that what is stored stands for no number, and for which element of the matrix."""

    def __init__(self, text: str, row: int, column: int) -> None:
        super().__init__(text)
        self.text, self.row, self.column = text, row, column


Needs: TypeAlias = Callable[[Params, Rect], dict[str, Rect]]
"""Return which part of each operand a part of the matrix is made of; none of them is empty."""

Decode: TypeAlias = Callable[[Params, Rect, Mapping[str, Array], Array], None]
"""Compute a part of the matrix from the parts of its operands into an array of its shape: float32, bfloat16
or float16. Raises `BadCode` if a code or scale stands for no number."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Turn tiles of codes and scales into values: ``float32(code - zero) * float32(scale)``, rounded once.

    It sees a matrix of ``params["rows"]`` by ``params["columns"]``, and what that is made of as matrices too.

    Attributes:
        name: What plans call it.
        needs: Says what of the operands is to be read.
        decode: Computes values.
        step: Rows to decode at a time, or a multiple of them, and about how many elements: so that what is
            computed stays in the second-level cache.
        turned: Computes the same, turned: into an array ``[columns, rows]``. Worth having where a turned
            matrix is what is usually wanted, since codes are smaller to turn than values.
        find: Of a codec of another package: takes what is known of a checkpoint and the name of a tensor
            (``Given`` in `ckptconv.planning.decode.part`), and returns the ``Part`` stored there, or None.
    """

    name: str
    needs: Needs
    decode: Decode
    step: tuple[int, int] = (1, 1 << 16)
    turned: Decode | None = None
    find: Callable[[Any, str], Any] | None = None


def as_float32(values: Array) -> Array:
    """Return scales as float32; ``uint8`` ones are powers of two with a bias of 127 (E8M0)."""
    if values.dtype == np.float32:
        return values
    if values.itemsize == 1:
        name = "float8_e8m0fnu" if values.dtype == np.uint8 else values.dtype.name
        return np.take(_table(name), values.view(np.uint8), mode="clip")
    if values.dtype == np.float16:
        return np.take(_table("float16"), values.view(np.uint16), mode="clip")
    return values.astype(np.float32)


@cache
def _table(name: str) -> Array:
    """Return the value of every bit pattern of a type."""
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, name, name))
    codes = np.arange(1 << 8 * kind.itemsize).astype(f"u{kind.itemsize}")
    with np.errstate(all="ignore"):
        values: Array = codes.view(kind).astype(np.float32)
    return values


def checked_scales(values: Array, rect: Rect, what: str = "scale") -> Array:
    """Return scales as float32.

    Raises:
        BadCode: if one is no finite number.
    """
    scales = as_float32(values)
    finite = np.isfinite(scales)
    if not finite.all():
        first = scales.reshape(-1)[int(np.flatnonzero(~finite.reshape(-1))[0])]
        raise BadCode(f"a {what} is {first}", rect[0], rect[2])
    return scales


def spread(values: Array, group: int, left: int, right: int, first: int = 0) -> Array:
    """Repeat each column ``group`` times, and return columns ``left`` up to ``right`` of that.

    Args:
        values: ``[rows, groups]``; a single column is left to broadcasting.
        group: Columns that share one.
        left: First column.
        right: End of columns.
        first: The group that column 0 of ``values`` is.
    """
    if values.shape[1] == 1:
        return values
    start = left - first * group
    return np.repeat(values, group, axis=1)[:, start : start + right - left]


def round_into(values: Array, out: Array) -> None:
    """Round float32 values without NaNs to the type of ``out``: to nearest, ties to even."""
    if out.dtype == np.float16:
        _to_half(values, out)
    else:
        with np.errstate(all="ignore"):
            np.copyto(out, values, casting="unsafe")


def narrow(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return float32 values rounded to a type."""
    out = np.empty(values.shape, dtype)
    round_into(values, out)
    return out


_SMALLEST, _LARGEST = 113 << 23, 0x477FEFFF  # normal, and not rounded to infinity
_DOWN = 2.0**-112  # from float32's exponent bias to float16's


def _to_half(values: Array, out: Array) -> None:
    """Round as numpy does, but normal numbers and zeros without its branches for each element."""
    bits = values.view(np.uint32)
    size = bits & np.uint32(0x7FFF_FFFF)
    # Below the smallest only zeros are as simple: one less than zero is the largest number there is.
    if (
        int(size.max(initial=0)) > _LARGEST
        or int((size - np.uint32(1)).min(initial=_LARGEST)) < _SMALLEST - 1
    ):
        with np.errstate(all="ignore"):
            np.copyto(out, values, casting="unsafe")
        return
    np.multiply(values, _DOWN, out=size.view(np.float32))
    odd = size >> np.uint32(13)
    odd &= np.uint32(1)
    size += odd
    size += np.uint32(0xFFF)
    size >>= np.uint32(13)  # the sign at bit 18, and 15 bits of float16
    np.right_shift(size, np.uint32(3), out=odd)
    odd &= np.uint32(0x8000)
    size &= np.uint32(0x7FFF)
    size |= odd
    np.copyto(out.view(np.uint16), size, casting="unsafe")
