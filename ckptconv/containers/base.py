"""Describe where a tensor's bytes lie in a file, for containers read and for containers written."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from ckptconv.dtypes import DType
from ckptconv.records import dataclass

__all__ = ["FileLayout", "FileTensor", "Placed", "contiguous_stride"]


@lru_cache(maxsize=1 << 12)  # a model's many tensors have few shapes
def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the row-major strides of ``shape``, in elements."""
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


@dataclass(frozen=True, slots=True)
class FileTensor:
    """Locate a tensor inside a file; nothing of its data is read.

    Attributes:
        dtype: Element type.
        shape: Sizes; ``()`` for a scalar.
        stride: Elements between neighbours along each axis.
        path: The file.
        offset: Byte position of element 0 in the file (the storage offset is included).
        storage: Byte position and length of the whole storage the tensor views. Two tensors of a file
            that share a storage have equal pairs.
    """

    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    path: str
    offset: int
    storage: tuple[int, int]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether elements lie in row-major order without gaps (axes of size 1 aside)."""
        wanted = contiguous_stride(self.shape)
        return (
            self.stride == wanted
            or self.numel == 0
            or all(n == 1 or s == want for n, s, want in zip(self.shape, self.stride, wanted, strict=True))
        )


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor at its place in a file to be written: contiguous, row-major, ``nbytes`` long at ``offset``."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Fix every byte of a file to be written except the tensors' data.

    Attributes:
        size: Length of the finished file in bytes.
        fixed: Byte strings at their offsets, known before the data (headers, padding that is not zero).
            A byte covered by neither ``fixed`` nor a tensor is zero.
        tensors: Where each tensor's data goes, by ascending offset.
        sealed_by: The container that records CRC-32 sums of the data: its ``seal`` is called with them, and
            the bytes it returns are written over the file once the data is there. Empty if none are recorded.
    """

    size: int
    fixed: tuple[tuple[int, bytes], ...]
    tensors: tuple[Placed, ...]
    sealed_by: str = ""

    @property
    def needs_crc(self) -> bool:
        """Whether the file has to be sealed."""
        return bool(self.sealed_by)
