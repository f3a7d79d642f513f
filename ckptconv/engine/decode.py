"""Compute parts of quantised matrices: read what they are made of, decode it block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np

from ckptconv.containers.decoded import Decoded
from ckptconv.containers.stored import Stored
from ckptconv.dtypes import numpy_dtype
from ckptconv.engine.turned import copy_box
from ckptconv.errors import FormatError
from ckptconv.numbers.codecs import Array, BadCode, Rect, codec

__all__ = ["Read", "decode_run", "rectangle"]

Read = Callable[[Stored, Rect], Array]
"""Return a part of a stored matrix, as elements of its own type."""


def decode_run(stored: Decoded, lo: int, count: int, out: Array, read: Read) -> None:
    """Compute ``count`` elements from flat element ``lo`` on into ``out``, contiguous, of the raw dtype.

    Raises:
        FormatError: if codes or scales stand for no number.
    """
    columns = stored.params["columns"]
    values = out.reshape(-1).view(f"u{stored.dtype.itemsize}")
    done = 0
    for rect in _rects(lo, lo + count, columns):
        row, end, left, right = rect
        size = (end - row) * (right - left)
        decode_rect(stored, rect, values[done : done + size].reshape(end - row, right - left), read)
        done += size


def _rects(lo: int, hi: int, columns: int) -> Iterator[Rect]:
    """Cut a flat run of a matrix into the end of a row, whole rows, and the beginning of one."""
    while lo < hi:
        row, column = divmod(lo, columns)
        rows = (hi - lo) // columns
        if column or not rows:
            end = min(columns, column + hi - lo)
            yield row, row + 1, column, end
            lo += end - column
        else:
            yield row, row + rows, 0, columns
            lo += rows * columns


def decode_rect(stored: Decoded, rect: Rect, out: Array, read: Read) -> None:
    """Compute a part of a matrix into ``out`` of its shape, of the raw dtype and of any strides.

    Raises:
        FormatError: if codes or scales stand for no number.
    """
    how, params = codec(stored.codec), stored.params
    wanted = how.needs(params, rect)
    tiles = {role: read(stored.operands[role], part) for role, part in wanted.items()}
    row, end, left, _ = rect
    kind, straight = numpy_dtype(stored.dtype), out.flags.c_contiguous
    turned = how.turned if not straight and out.strides[0] == out.itemsize else None
    step = how.step if turned is None else (end - row, how.step[1])
    try:
        for block in _blocks(rect, *step):
            parts = {
                role: _within(tiles[role], wanted[role], part)
                for role, part in how.needs(params, block).items()
            }
            here = _within(out, (row, 0, left, 0), block)
            if straight:
                how.decode(params, block, parts, here.view(kind))
                continue
            if turned is not None:
                turned(params, block, parts, here.T.view(kind))
                continue
            values = np.empty(here.shape, kind)
            how.decode(params, block, parts, values)
            copy_box(values.view(here.dtype), here)
    except BadCode as e:
        raise _refusal(stored, e) from e


def _blocks(rect: Rect, rows: int, elements: int) -> Iterator[Rect]:
    """Cut a part of a matrix into blocks of so many rows, or a multiple of that."""
    row, end, left, right = rect
    wide = right - left
    if rows > 1:
        wide = min(wide, max(64, elements // min(rows, end - row)))
    high = max(1, elements // max(wide, 1)) // rows * rows or rows
    for at in range(row - row % rows, end, high):
        for column in range(left, right, wide):
            yield max(at, row), min(end, at + high), column, min(right, column + wide)


def _within(tile: Array, whole: Rect, part: Rect) -> Array:
    row, _, left, _ = whole
    return tile[part[0] - row : part[1] - row, part[2] - left : part[3] - left]


def _refusal(stored: Decoded, error: BadCode) -> FormatError:
    at = min(error.row * stored.params["columns"] + error.column, max(stored.numel - 1, 0))
    path, byte, _ = next(stored.spans(at, at + 1))
    return FormatError(
        f"{stored.name}[{error.row}, {error.column}]: {error.text}",
        where=f"{path} near byte {byte}",
        hint="codes or scales are damaged: copy the quantised model again",
    )


def rectangle(stored: Decoded, offset: int, size: Sequence[int], stride: Sequence[int]) -> Rect | None:
    """Return the least part of the matrix that holds a box of it; None if the box wraps around its rows."""
    columns = stored.params["columns"]
    row, left = divmod(offset, columns)
    rows = width = 0
    for n, step in zip(size, stride, strict=True):
        if n == 1:
            continue
        if step % columns == 0:
            rows += (n - 1) * step // columns
        elif step * (n - 1) < columns:
            width += (n - 1) * step
        else:
            return None
    if left + width >= columns:
        return None
    return row, row + rows + 1, left, left + width + 1


def strides_in(rect: Rect, columns: int, stride: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a box within a part of the matrix."""
    width = rect[3] - rect[2]
    return tuple([s // columns * width if s % columns == 0 and s else s for s in stride])


def area(rect: Rect) -> int:
    """Return how many elements a part has."""
    return prod((rect[1] - rect[0], rect[3] - rect[2]))


def empty(stored: Stored, rect: Rect) -> Array:
    """Return memory for a part of a stored matrix."""
    return np.empty((rect[1] - rect[0], rect[3] - rect[2]), numpy_dtype(stored.dtype))
