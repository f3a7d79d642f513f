"""Map a flat run of elements to the files it lies in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import field
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from ckptconv.containers.base import FileTensor
from ckptconv.dtypes import DType
from ckptconv.errors import FormatError
from ckptconv.records import dataclass

__all__ = ["Extent", "Stored", "concatenated", "dense_axes", "from_file_tensor"]


_ONE = (0,)  # where the extents of most tensors start: there is one


class Extent(NamedTuple):
    """Say that elements from ``start`` on lie one after the other in ``path`` from byte ``offset`` on."""

    start: int
    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Hold a tensor as its files hold it: row-major elements, spread over one or more extents.

    A tensor cut over data-parallel ranks is one ``Stored`` with an extent a rank, so that a plan needs
    no entry per rank.

    Attributes:
        dtype: Element type, the same in every extent.
        shape: Shape of the whole; a flat ZeRO group is ``(numel,)``, one with a rank axis ``(ranks, row)``.
        extents: By ascending ``start``; the first starts at 0.
    """

    dtype: DType
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        one = len(self.extents) == 1 and self.extents[0].start == 0
        object.__setattr__(self, "_starts", _ONE if one else tuple([e.start for e in self.extents]))

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def paths(self) -> set[str]:
        """Return the files it lies in."""
        return {e.path for e in self.extents}

    def spans(self, lo: int, hi: int) -> Iterator[tuple[str, int, int]]:
        """Yield ``(path, byte offset, bytes)`` for elements ``lo`` up to ``hi``, in order."""
        if not 0 <= lo <= hi <= self.numel:
            raise IndexError(f"elements [{lo}, {hi}) of {self.numel}")
        item = self.dtype.itemsize
        at = bisect_right(self._starts, lo) - 1
        while lo < hi:
            extent = self.extents[at]
            at += 1
            end = self._starts[at] if at < len(self.extents) else self.numel
            stop = min(hi, end)
            if stop > lo:
                yield extent.path, extent.offset + (lo - extent.start) * item, (stop - lo) * item
                lo = stop


def dense_axes(tensor: FileTensor) -> bool:
    """Whether the view covers a run of its storage without gaps or overlaps, in whatever axis order."""
    return _is_dense(tensor.shape, tensor.stride)


@lru_cache(maxsize=1 << 12)  # a model's many tensors have few forms
def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for step, size in sorted([(s, n) for n, s in zip(shape, stride, strict=True) if n != 1]):
        if step != expected:
            return False
        expected *= size
    return True


def from_file_tensor(tensor: FileTensor) -> Stored:
    """Wrap a tensor found in a file. Its axes keep their storage order if it is dense.

    Raises:
        FormatError: if the view repeats elements (``torch.expand``).
    """
    if dense_axes(tensor) or tensor.numel == 0:
        return Stored(tensor.dtype, tensor.shape, (Extent(0, tensor.path, tensor.offset),))
    # More elements than the storage has bytes for: some are there several times (a list of the runs of one
    # made to do harm would have no end).
    repeats = tensor.nbytes > tensor.storage[1]
    if repeats or any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride, strict=True)):
        raise FormatError(
            f"a tensor of shape {tensor.shape} repeats its elements (stride {tensor.stride}, torch.expand)",
            where=tensor.path,
            hint="save a contiguous copy of it",
        )
    # A view with gaps: each innermost run is an extent, in the view's own row-major order.
    item = tensor.dtype.itemsize
    inner = tensor.shape[-1] if tensor.stride[-1] == 1 else 1
    outer = list(zip(tensor.shape, tensor.stride, strict=True))[: -1 if inner > 1 else None]
    extents = []
    for i, index in enumerate(product(*(range(n) for n, _ in outer))):
        at = sum(k * s for k, (_, s) in zip(index, outer, strict=True))
        extents.append(Extent(i * inner, tensor.path, tensor.offset + at * item))
    return Stored(tensor.dtype, tensor.shape, tuple(extents))


def concatenated(tensors: list[FileTensor], shape: tuple[int, ...]) -> Stored:
    """Join one-dimensional tensors end to end; empty ones take no extent.

    Raises:
        FormatError: if they differ in dtype, are not contiguous, or do not add up to ``shape``.
    """
    extents: list[Extent] = []
    start = 0
    for t in tensors:
        if t.dtype != tensors[0].dtype:
            raise FormatError(f"partitions differ in dtype: {t.dtype} and {tensors[0].dtype}", where=t.path)
        if not t.is_contiguous:
            raise FormatError(f"a flat partition is not contiguous: stride {t.stride}", where=t.path)
        if t.numel:
            extents.append(Extent(start, t.path, t.offset))
        start += t.numel
    if start != prod(shape):
        raise FormatError(f"partitions hold {start} elements where {prod(shape)} were expected")
    if not extents:
        extents.append(Extent(0, tensors[0].path, tensors[0].offset))
    return Stored(tensors[0].dtype, shape, tuple(extents))
