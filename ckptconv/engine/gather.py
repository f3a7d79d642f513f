"""Bring strided boxes of stored tensors into memory, reading no more than is near them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ckptconv.containers.base import contiguous_stride
from ckptconv.containers.decoded import Decoded
from ckptconv.containers.stored import Stored
from ckptconv.engine.decode import area, decode_rect, decode_run, empty, rectangle, strides_in
from ckptconv.engine.rows import Rows
from ckptconv.engine.turned import copy_box, is_turned, read_turned
from ckptconv.numbers.codecs import Array, Rect
from ckptconv.places.files import SourceFiles
from ckptconv.records import dataclass

__all__ = ["Array", "Shared", "gather", "raw_dtype", "runs", "shared_rows", "window"]

Ints = tuple[int, ...]

# A box whose elements lie scattered over at most this many times their own size is read in one piece.
_SPARSE = 8

# Of rows of which at most this part is wanted all is held, as others want the rest.
_FEW = 4

# Over more, if it is held for others.
_SPREAD = 64

# Runs of a box that lie further apart than this are read one by one, without what lies between.
_APART = 64 << 10


@dataclass(frozen=True, slots=True)
class Shared:
    """Say that rows of a tensor are held for others.

    Attributes:
        rows: Where.
        name: The tensor's name there.
        room: Bytes that may be held at once.
    """

    rows: Rows
    name: str
    room: int


def raw_dtype(itemsize: int) -> np.dtype[Any]:
    """Return a dtype that moves elements of ``itemsize`` bytes without looking at them."""
    return np.dtype(f"u{itemsize}") if itemsize <= 8 else np.dtype(f"V{itemsize}")


def window(flat: Array, offset: int, size: Sequence[int], stride: Sequence[int]) -> Array:
    """Return a strided view of a flat array; numpy refuses one that does not lie inside."""
    item = flat.itemsize
    return np.ndarray(size, flat.dtype, flat, offset * item, tuple([s * item for s in stride]))


def gather(
    files: SourceFiles,
    stored: Stored,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    out: Array,
    limit: int,
    shared: Shared | None = None,
) -> None:
    """Read the elements ``offset + i * stride`` of a stored tensor into ``out``.

    Args:
        files: The source files.
        stored: The tensor.
        offset: Flat index of the first element.
        size: Elements along each axis.
        stride: Flat distance along each axis, in elements.
        out: Array of shape ``size`` with the raw dtype, of any strides.
        limit: Bytes that may be held besides ``out``.
        shared: Holds whole rows of the tensor for others who want other columns of them, or the same.
    """
    size, stride = tuple(size), tuple(stride)
    if prod(size) == 0:
        return
    if shared is not None and _from_shared(files, stored, offset, size, stride, out, shared):
        return
    if isinstance(stored, Decoded):
        done = _decode_box(files, stored, offset, size, stride, out, limit)
    else:
        done = _read_box(files, stored, offset, size, stride, out, limit)
    if done:
        return
    axis = max(range(len(size)), key=lambda a: (size[a] > 1, stride[a]))
    half = size[axis] // 2
    for lo, hi in ((0, half), (half, size[axis])):
        index = (*[slice(None)] * axis, slice(lo, hi))
        part = (*size[:axis], hi - lo, *size[axis + 1 :])
        gather(files, stored, offset + lo * stride[axis], part, stride, out[index], limit, shared)


def _from_shared(
    files: SourceFiles, stored: Stored, offset: int, size: Ints, stride: Ints, out: Array, shared: Shared
) -> bool:
    """Take a box from whole rows that are held; False if it has none, or they are too many."""
    rows = shared_rows(stored, offset, size, stride, shared.room)
    if rows is None:
        return False
    lo, hi = rows
    nbytes = (hi - lo) * stored.dtype.itemsize

    def read(array: Array) -> None:
        _read(files, stored, lo, hi - lo, array)

    held = shared.rows.get(shared.name, lo, hi, nbytes, read).view(out.dtype)
    copy_box(window(held, offset - lo, size, stride), out)
    return True


def shared_rows(stored: Stored, offset: int, size: Ints, stride: Ints, room: int) -> tuple[int, int] | None:
    """Return which elements are held for others of what a box lies in, as first and one past the last.

    None if it has no rows, or they are more than ``room`` bytes, or mostly of nobody.
    """
    rows = _rows(stored, offset, size, stride)
    if rows is None:
        return None
    count = rows[1] - rows[0]
    if count * stored.dtype.itemsize > room or count > _SPREAD * prod(size):
        return None
    return rows


def runs(offset: int, size: Ints, stride: Ints, item: int) -> Iterator[tuple[int, int]]:
    """Yield which elements `gather` reads of a box: each run's first, and one past its last.

    What lies scattered over many times its size, as the columns of a matrix that is turned, is left out.

    Args:
        offset: Flat index of its first element.
        size: Elements along each axis.
        stride: Flat distance along each axis.
        item: Bytes of an element.
    """
    axes = sorted(((n, s) for n, s in zip(size, stride, strict=True) if n > 1), key=lambda axis: axis[1])
    span = 1
    for i, (n, s) in enumerate(axes):
        if (s - span) * item >= _APART:
            if span <= _SPARSE * prod(n for n, _ in axes[:i]):
                yield from _apart(offset, axes[i:], span)
            return
        span += (n - 1) * s
    if span <= _SPARSE * prod(size):
        yield offset, offset + span


def _apart(offset: int, axes: Sequence[tuple[int, int]], span: int) -> Iterator[tuple[int, int]]:
    for index in product(*(range(n) for n, _ in reversed(axes))):
        lo = offset + sum(i * s for i, (_, s) in zip(index, reversed(axes), strict=True))
        yield lo, lo + span


def _are_apart(size: Ints, stride: Ints, item: int) -> bool:
    """Whether runs of a box lie so far apart that what lies between is not read."""
    span = 1
    for n, s in sorted(zip(size, stride, strict=True), key=lambda axis: axis[1]):
        if n > 1:
            if (s - span) * item >= _APART:
                return True
            span += (n - 1) * s
    return False


def _read_box(
    files: SourceFiles, stored: Stored, offset: int, size: Ints, stride: Ints, out: Array, limit: int
) -> bool:
    """Read a box that lies in one piece, in a band of columns, or in little more than its size."""
    if stride == contiguous_stride(size) or prod(size) == 1:
        return _read_run(files, stored, offset, out, limit)
    if is_turned(stride, out) and read_turned(files, stored, offset, size, stride, out):
        return True
    span = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if span * out.itemsize > limit or span > _SPARSE * prod(size):
        return False
    if _are_apart(size, stride, out.itemsize):
        return False
    scratch = np.empty(span, out.dtype)
    _read(files, stored, offset, span, scratch)
    copy_box(window(scratch, 0, size, stride), out)
    return True


def _read_run(files: SourceFiles, stored: Stored, offset: int, out: Array, limit: int) -> bool:
    """Read elements that lie one after the other, unless they are too many to be put elsewhere first."""
    if out.flags.c_contiguous:
        _read(files, stored, offset, out.size, out)
        return True
    if out.nbytes > limit:
        return False
    scratch = np.empty(out.size, out.dtype)
    _read(files, stored, offset, out.size, scratch)
    out[...] = scratch.reshape(out.shape)
    return True


def _decode_box(
    files: SourceFiles, stored: Decoded, offset: int, size: Ints, stride: Ints, out: Array, limit: int
) -> bool:
    """Decode a box: straight to where it goes, as a run, or with what lies between."""
    straight = stride == contiguous_stride(size)
    if not (straight and out.flags.c_contiguous) and _turned(files, stored, offset, size, stride, out, limit):
        return True
    if straight or prod(size) == 1:
        return _read_run(files, stored, offset, out, limit)
    return _decoded(files, stored, offset, size, stride, out, limit)


def _rows(
    stored: Stored, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[int, int] | None:
    """Return the first element of the rows a box lies in, and one past the last; None for a row's parts."""
    if stride == contiguous_stride(size):
        return offset, offset + prod(size)
    count, width = max(zip(size, stride, strict=True), key=lambda axis: (axis[0] > 1) * axis[1])
    span = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    lo = offset - offset % width
    hi = min(lo + count * width, stored.numel)
    return (lo, hi) if offset + span <= hi else None


def _turned(
    files: SourceFiles,
    stored: Decoded,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    out: Array,
    limit: int,
) -> bool:
    """Decode a box that is all of a part of the matrix straight to where it goes, in whatever order."""
    columns = stored.params["columns"]
    axes = [a for a, n in enumerate(size) if n > 1]
    high = [a for a in axes if stride[a] == columns]
    wide = [a for a in axes if stride[a] == 1 and columns > 1]
    if len(high) > 1 or len(wide) > 1 or len(high) + len(wide) < len(axes):
        return False
    part = rectangle(stored, offset, size, stride)
    if part is None or area(part) * out.itemsize > limit:
        return False
    others = [a for a in range(len(size)) if a not in axes]
    here = out.transpose([*high, *wide, *others])
    for _ in others:
        here = here[..., 0]
    if not high:
        here = here[None]
    if not wide:
        here = here[..., None]
    decode_rect(stored, part, here, _operand(files, limit))
    return True


def _decoded(
    files: SourceFiles,
    stored: Decoded,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    out: Array,
    limit: int,
) -> bool:
    """Decode the part of a quantised matrix that holds a box, unless it is too large or mostly others'."""
    part = rectangle(stored, offset, size, stride)
    if part is None or area(part) * out.itemsize > limit or area(part) > _SPARSE * prod(size):
        return False
    scratch = np.empty((part[1] - part[0], part[3] - part[2]), out.dtype)
    decode_rect(stored, part, scratch, _operand(files, limit))
    within = strides_in(part, stored.params["columns"], stride)
    out[...] = window(scratch.reshape(-1), 0, size, within)
    return True


def _operand(files: SourceFiles, limit: int) -> Callable[[Stored, Rect], Array]:
    """Return what reads parts of the matrices that a quantised one is made of."""

    def read(stored: Stored, part: Rect) -> Array:
        out, columns = empty(stored, part), stored.shape[1]
        raw, offset = out.view(raw_dtype(out.itemsize)), part[0] * columns + part[2]
        if out.shape[0] == 1 or out.shape[1] == columns:
            _read(files, stored, offset, out.size, raw)
        elif len(stored.extents) == 1:
            item, extent = out.itemsize, stored.extents[0]
            place, width = extent.offset + offset * item, out.shape[1] * item
            begin, length = extent.offset + part[0] * columns * item, out.shape[0] * columns * item
            few = columns >= _FEW * out.shape[1]
            if few and (held := files.hold(extent.path, begin, length)) is not None:
                whole = np.frombuffer(held, raw.dtype).reshape(-1, columns)
                return whole[:, part[2] : part[3]].view(out.dtype)
            view = raw.reshape(-1).view(np.uint8).data
            files.read_rows(extent.path, place, columns * item, width, view)
        else:
            gather(files, stored, offset, out.shape, (columns, 1), raw, limit)
        return out

    return read


def _read(files: SourceFiles, stored: Stored, offset: int, count: int, out: Array) -> None:
    if isinstance(stored, Decoded):
        decode_run(stored, offset, count, out, _operand(files, max(out.nbytes, 1 << 16)))
        return
    view = out.reshape(-1).view(np.uint8).data
    at = 0
    for path, position, nbytes in stored.spans(offset, offset + count):
        files.read_into(path, position, view[at : at + nbytes])
        at += nbytes
