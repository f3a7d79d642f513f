"""Build the graph of a checkpoint: stored tensors, named tensors and the pairs between them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import Extent, Stored, dense_axes, from_file_tensor
from ckptconv.dtypes import DType
from ckptconv.places.files import FileStamp, stamp
from ckptconv.places.places import ZEROS
from ckptconv.relations import Box, Drop, Pair, Relation, Spec
from ckptconv.relations.box import as_box
from ckptconv.relations.pair import as_pair

__all__ = ["GraphBuilder"]


class GraphBuilder:
    """Collect stored tensors, named tensors and the pairs between them."""

    def __init__(self) -> None:
        self.stored: dict[str, Stored] = {}
        self.right: dict[str, Spec] = {}
        self.pairs: list[Pair] = []
        self.left_only: list[Drop] = []
        self._stamps: dict[str, FileStamp] = {}

    def store(self, key: str, stored: Stored) -> None:
        """Add a stored tensor under a new key."""
        if key in self.stored:
            raise AssertionError(f"stored twice: {key}")
        self.stored[key] = stored
        for extent in stored.extents:
            if extent.path != ZEROS and extent.path not in self._stamps:
                self._stamps[extent.path] = stamp(extent.path)

    def name(self, name: str, shape: tuple[int, ...], dtype: DType) -> None:
        """Declare a named tensor."""
        self.right[name] = Spec(shape, dtype.name)

    def whole(
        self, key: str, tensor: FileTensor, name: str, *, dtype: DType | None = None, copy: bool = False
    ) -> None:
        """Relate a tensor of a file to a named tensor one to one.

        Args:
            key: Name for the stored side.
            tensor: Where it lies.
            name: The named tensor; declared here unless ``copy``.
            dtype: Its dtype if the value is cast.
            copy: Whether it repeats what another pair provides and is to be compared.
        """
        stored = from_file_tensor(tensor)
        self.store(key, stored)
        if not copy:
            self.name(name, tensor.shape, dtype or tensor.dtype)
        if tensor.numel == 0:
            return
        left = as_box((key, 0, *_axes(tensor.shape, tensor.stride if dense_axes(tensor) else None)))
        self.pairs.append(as_pair((left, as_box((name, 0, *_axes(tensor.shape, None))), copy, False)))

    def zeros(self, name: str, shape: tuple[int, ...], dtype: DType) -> None:
        """Declare a named tensor of zeros that no file holds."""
        key = f"{ZEROS}{name}"
        self.store(key, Stored(dtype, shape, (Extent(0, ZEROS, 0),)))
        self.name(name, shape, dtype)
        self.pairs.append(Pair(Box.whole(key, shape), Box.whole(name, shape)))

    def relation(self) -> Relation:
        """Return the finished relation, checked: every element on either side is accounted for."""
        left = {k: Spec(s.shape, s.dtype.name) for k, s in self.stored.items()}
        relation = Relation(left, self.right, tuple(self.pairs), tuple(self.left_only))
        relation.check()
        return relation

    def touch(self, path: str | Path) -> None:
        """Remember a file that was read for its metadata only."""
        self._stamps.setdefault(str(path), stamp(path))

    @property
    def files(self) -> tuple[FileStamp, ...]:
        """Stamps of all files that were read."""
        return tuple(self._stamps.values())


@lru_cache(maxsize=1 << 12)  # a model's many tensors have few forms
def _axes(shape: tuple[int, ...], stride: tuple[int, ...] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return size and stride of the box of a whole tensor, in the order of its storage without a stride."""
    whole = Box.whole("", shape) if stride is None else Box.strided("", 0, zip(shape, stride, strict=True))
    return whole.size, whole.stride
