"""Turn matrices: bring boxes whose elements lie in another order than they are written to, by tiles.

Each element of a matrix that is read down its columns costs a line of the cache, and where rows are a power
of two apart the lines push each other out. So a turned box is copied by tiles, brought together first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptconv.containers.stored import Stored
from ckptconv.numbers.codecs import Array
from ckptconv.places.files import SourceFiles

__all__ = ["copy_box", "is_turned", "read_turned"]


_TILE = 512, 128  # rows and columns of what is read: 128 KiB of 16-bit elements
_FEW = 1 << 10  # elements of a matrix that are copied as they come
_LINE = 64  # bytes: less of a row is not worth its read


def is_turned(stride: Sequence[int], out: Array) -> bool:
    """Tell whether what is written one after another lies apart in a box of these strides."""
    fast = min(
        (a for a in range(out.ndim) if out.shape[a] > 1), key=lambda a: abs(out.strides[a]), default=None
    )
    return fast is not None and stride[fast] != 1


def copy_box(values: Array, out: Array) -> None:
    """Copy ``values`` to ``out`` of the same shape and dtype, both of any strides."""
    axes = [a for a in range(out.ndim) if out.shape[a] > 1]
    read = next((a for a in axes if values.strides[a] == values.itemsize), None)
    written = next((a for a in axes if out.strides[a] == out.itemsize), None)
    if read is None or written is None or read == written:
        out[...] = values
        return
    if out.shape[read] * out.shape[written] < _FEW:
        out[...] = values
        return
    others = [a for a in range(out.ndim) if a not in (read, written)]
    order = [*others, read, written]
    values, out = values.transpose(order), out.transpose(order)
    for index in np.ndindex(out.shape[:-2]):
        _copy_turned(values[index], out[index])


def _copy_turned(values: Array, out: Array) -> None:
    """Copy a matrix whose columns are contiguous to one whose rows are."""
    room = np.empty(_TILE, out.dtype)
    for top in range(0, out.shape[0], _TILE[1]):
        for left in range(0, out.shape[1], _TILE[0]):
            tile = values[top : top + _TILE[1], left : left + _TILE[0]].T
            here = room[: tile.shape[0], : tile.shape[1]]
            np.copyto(here, tile)
            out[top : top + _TILE[1], left : left + _TILE[0]] = here.T


def read_turned(
    files: SourceFiles, stored: Stored, offset: int, size: Sequence[int], stride: Sequence[int], out: Array
) -> bool:
    """Read a box that lies in few columns of a matrix, out of a band of columns that is held.

    What is written next are the columns beside them, so all rows of a band are read once, and held.

    Args:
        files: The source files.
        stored: The tensor.
        offset: Flat index of the first element.
        size: Elements along each axis.
        stride: Flat distance along each axis, in elements.
        out: Array of shape ``size`` with the raw dtype, of any strides.

    Returns:
        False, with nothing done, if it does not lie so, or a band is too large to be held.
    """
    down = max(range(len(size)), key=lambda a: (size[a] > 1, stride[a]))
    columns, item = stride[down], out.itemsize
    if columns < 1 or len(stored.extents) != 1:
        return False
    rows, row, column = stored.numel // columns, *divmod(offset, columns)
    beside = [a for a, n in enumerate(size) if a != down and n > 1]
    last = column + sum((size[a] - 1) * stride[a] for a in beside)
    band = min(columns, files.memory // 2 // (rows * item))
    if stored.numel % columns or last >= columns or band * item < _LINE:
        return False
    if column // band != last // band:
        axis = max(beside, key=lambda a: stride[a])
        for lo, hi in ((0, size[axis] // 2), (size[axis] // 2, size[axis])):
            part = (*size[:axis], hi - lo, *size[axis + 1 :])
            there = out[(*[slice(None)] * axis, slice(lo, hi))]
            if not read_turned(files, stored, offset + lo * stride[axis], part, stride, there):
                return False
        return True
    first = column - column % band
    width = min(band, columns - first)
    held = files.hold(
        stored.extents[0].path, stored.extents[0].offset + first * item, width * item, columns * item, rows
    )
    if held is None:
        return False
    flat = np.frombuffer(held, out.dtype)[row * width + column - first :]
    steps = [item * (width if a == down else s) for a, s in enumerate(stride)]
    copy_box(np.ndarray(tuple(size), flat.dtype, flat, 0, tuple(steps)), out)
    return True
