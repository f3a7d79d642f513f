"""Lay out an HDF5 file in its earliest form, as h5py writes one by default: structure first, data behind it.

The format: HDF5 File Format Specification 3.0: superblock 0, object headers 1, groups with symbol tables,
contiguous datasets. What HDF5 1.14 reads is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from math import prod
from typing import Final

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.containers.torch.picklevm import short
from ckptconv.dtypes import DType
from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = ["Dataset", "Node", "layout"]

_UNDEFINED: Final = b"\xff" * 8
_LEAF, _INTERNAL = 4, 16  # half of how many members and children a node has room for (HDF5's own choice)
_MOST_TEXT: Final = 64_512  # bytes of an attribute, as Keras cuts them (HDF5_OBJECT_HEADER_LIMIT)
_ALIGN: Final = 8


@dataclass(frozen=True, slots=True)
class Dataset:
    """Declare a dataset: the tensor it holds, its type and shape."""

    tensor: str
    dtype: DType
    shape: tuple[int, ...]


@dataclass(slots=True)
class Node:
    """Hold a group to be written.

    Attributes:
        members: What is in it, by name.
        texts: Attributes that are lists of texts; long ones are cut into several, as Keras does.
        words: Attributes that are one text.
    """

    members: dict[str, Node | Dataset] = field(default_factory=dict)
    texts: dict[str, Sequence[str]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def put(self, path: str, dataset: Dataset) -> None:
        """Add a dataset at a path of groups.

        Raises:
            PlanError: if something else has its name.
        """
        *groups, last = path.split("/")
        node = self
        for name in groups:
            below = node.members.setdefault(name, Node())
            if not isinstance(below, Node):
                raise PlanError(f"{short(path)} would lie in a dataset")
            node = below
        if last in node.members:
            raise PlanError(f"two tensors would be the dataset {short(path)}")
        node.members[last] = dataset


def layout(root: Node) -> FileLayout:
    """Lay out a file with all that is below a group.

    Raises:
        PlanError: if a type has no form in HDF5.
    """
    made = _Writer()
    address, tree, heap = made.group(root)
    start = -(-len(made.blob) // _ALIGN) * _ALIGN
    placed: list[Placed] = []
    at = start
    for dataset, where in made.datasets:
        placed.append(Placed(dataset.tensor, dataset.dtype, dataset.shape, at))
        size = placed[-1].nbytes
        if size:
            made.blob[where : where + 8] = _number(at)
        at += -(-size // _ALIGN) * _ALIGN
    made.blob[:96] = _superblock(at, address, tree, heap)
    return FileLayout(at, ((0, bytes(made.blob)),), tuple(placed))


def _number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def _superblock(end: int, root: int, tree: int, heap: int) -> bytes:
    head = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0])
    head += _number(_LEAF, 2) + _number(_INTERNAL, 2) + bytes(4)
    head += _number(0) + _UNDEFINED + _number(end) + _UNDEFINED
    return head + _number(0) + _number(root) + _number(1, 4) + bytes(4) + _number(tree) + _number(heap)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 8)


class _Writer:
    """Collect the structure; a dataset's place is filled in when all of it is known."""

    def __init__(self) -> None:
        self.blob = bytearray(96)
        self.datasets: list[tuple[Dataset, int]] = []

    def _append(self, raw: bytes) -> int:
        at = len(self.blob)
        self.blob += _padded(raw)
        return at

    def group(self, node: Node) -> tuple[int, int, int]:
        """Write a group; return the addresses of its header, its tree and its names."""
        found: list[tuple[bytes, int]] = []
        for name, member in node.members.items():
            address = self.group(member)[0] if isinstance(member, Node) else self._dataset(member)
            found.append((name.encode(), address))
        found.sort()
        offsets, names = [], bytearray(8)
        for key, _ in found:
            offsets.append(len(names))
            names += _padded(key + b"\0")
        data = self._append(bytes(names))
        heap = self._append(b"HEAP" + bytes(4) + _number(len(names)) + _number(1) + _number(data))
        tree = self._tree([(o, a) for o, (_, a) in zip(offsets, found, strict=True)])
        messages = [(0x11, _number(tree) + _number(heap))]
        for label, texts in node.texts.items():
            messages += [(0x0C, _attribute(k, part)) for k, part in _cut(label, texts)]
        messages += [(0x0C, _attribute(label, [text], scalar=True)) for label, text in node.words.items()]
        return self._append(_header(messages)), tree, heap

    def _tree(self, entries: list[tuple[int, int]]) -> int:
        """Write the B-tree of a group's members, sorted by name; return its root."""
        level: list[tuple[int, int]] = []  # the offset of a child's last name, the child
        for i in range(0, len(entries), 2 * _LEAF):
            part = entries[i : i + 2 * _LEAF]
            body = b"".join(_number(o) + _number(a) + bytes(24) for o, a in part)
            raw = b"SNOD\x01\x00" + _number(len(part), 2) + body.ljust(2 * _LEAF * 40, b"\0")
            level.append((part[-1][0], self._append(raw)))
        depth = 0
        while True:
            level = self._nodes(level, depth)
            if len(level) == 1:
                return level[0][1]
            depth += 1

    def _nodes(self, children: list[tuple[int, int]], depth: int) -> list[tuple[int, int]]:
        """Write one level of a tree; siblings lie one behind the other."""
        parts = [children[i : i + 2 * _INTERNAL] for i in range(0, len(children), 2 * _INTERNAL)] or [[]]
        size = 24 + 8 * (4 * _INTERNAL + 1)
        first, made, before = len(self.blob), [], 0
        for n, part in enumerate(parts):
            left = _number(first + (n - 1) * size) if n else _UNDEFINED
            right = _number(first + (n + 1) * size) if n + 1 < len(parts) else _UNDEFINED
            body = _number(before) + b"".join(_number(child) + _number(last) for last, child in part)
            raw = b"TREE\x00" + bytes([depth]) + _number(len(part), 2) + left + right + body
            before = part[-1][0] if part else 0
            made.append((before, self._append(raw.ljust(size, b"\0"))))
        return made

    def _dataset(self, dataset: Dataset) -> int:
        size = prod(dataset.shape) * dataset.dtype.itemsize
        place = bytes([3, 1]) + _UNDEFINED + _number(size)
        messages = [
            (0x01, _dataspace(dataset.shape)),
            (0x03, _datatype(dataset.dtype)),
            (0x05, bytes([2, 2, 2, 0])),  # a fill value that nobody defined
            (0x08, place),
        ]
        raw = _header(messages)
        at = self._append(raw)
        self.datasets.append((dataset, at + raw.index(place) + 2))
        return at


def _header(messages: Sequence[tuple[int, bytes]]) -> bytes:
    """Return an object header of version 1."""
    body = b"".join(
        _number(kind, 2) + _number(len(_padded(raw)), 2) + bytes(4) + _padded(raw) for kind, raw in messages
    )
    head = bytes([1, 0]) + _number(len(messages), 2) + _number(1, 4) + _number(len(body), 4) + bytes(4)
    return head + body


def _dataspace(shape: Sequence[int]) -> bytes:
    return bytes([1, len(shape), 0]) + bytes(5) + b"".join(_number(n) for n in shape)


# Place of the sign, of the exponent, its size, the mantissa's size, the exponent's bias (IEEE 754).
_FLOATS: Final[Mapping[str, tuple[int, int, int, int, int]]] = {
    "float64": (63, 52, 11, 52, 1023),
    "float32": (31, 23, 8, 23, 127),
    "float16": (15, 10, 5, 10, 15),
}


def _datatype(dtype: DType) -> bytes:
    size = dtype.itemsize
    if dtype.name in _FLOATS:
        sign, place, exponent, mantissa, bias = _FLOATS[dtype.name]
        head = bytes([0x11, 0x20, sign, 0]) + _number(size, 4) + _number(0, 2) + _number(8 * size, 2)
        return head + bytes([place, exponent, 0, mantissa]) + _number(bias, 4)
    if dtype.kind == "int":
        signed = 0 if dtype.name.startswith("u") else 8
        return bytes([0x10, signed, 0, 0]) + _number(size, 4) + _number(0, 2) + _number(8 * size, 2)
    raise PlanError(f"HDF5 has no form of {dtype} that TensorFlow reads", hint="add --dtype float32")


def _attribute(name: str, texts: Sequence[str], *, scalar: bool = False) -> bytes:
    """Return an attribute of version 1: texts of one length, filled with zeros."""
    raw = [t.encode() for t in texts]
    size = max((len(r) for r in raw), default=0) or 1
    kind = bytes([0x13, 1, 0, 0]) + _number(size, 4)
    space = _dataspace(() if scalar else (len(raw),))
    key = name.encode() + b"\0"
    head = bytes([1, 0]) + b"".join(_number(len(part), 2) for part in (key, kind, space))
    return head + b"".join(map(_padded, (key, kind, space))) + b"".join(r.ljust(size, b"\0") for r in raw)


def _cut(name: str, texts: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """Cut a list of texts too long for one attribute, as Keras does: ``NAME0``, ``NAME1``..."""
    size = max((len(t.encode()) for t in texts), default=0)
    count = max(1, _MOST_TEXT // max(size, 1))
    if len(texts) <= count:
        return [(name, texts)]
    return [(f"{name}{n}", texts[i : i + count]) for n, i in enumerate(range(0, len(texts), count))]
