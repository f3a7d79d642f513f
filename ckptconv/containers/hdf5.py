"""Read the structure of an HDF5 file as h5py writes it by default: groups, attributes, where datasets lie.

The format: HDF5 File Format Specification 3.0. Read is its earliest form (superblock 0 or 1, object headers
1, symbol tables), which h5py 3 writes unless told otherwise; of a dataset only the place of its bytes is
looked up. Every object is visited once, and of structure no more is read than a few times the file's length,
so that a file made to do harm ends in an error soon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from math import prod
from os import PathLike, fspath
from typing import Final, NoReturn

from ckptconv.containers.base import FileTensor, contiguous_stride
from ckptconv.containers.torch.picklevm import short
from ckptconv.dtypes import BY_NAME, DType
from ckptconv.errors import FormatError
from ckptconv.places.regular import open_binary
from ckptconv.places.window import Window
from ckptconv.records import dataclass

__all__ = ["Group", "open_hdf5"]

_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_UNDEFINED: Final = (1 << 64) - 1
_MOST_DIMS: Final = 32  # HDF5's own limit (H5S_MAX_RANK)
_MOST_HEADER: Final = 64 << 20  # bytes of an object header, a name table or a node
_MOST_DEPTH: Final = 64
_TIMES: Final = 4  # how often a file of nothing but structure may be read, headers being looked at twice
_LONGEST: Final = 4096  # bytes of a text in an attribute
_RESAVE: Final = "save it again with h5py's defaults: no chunks, no compression, no libver='latest'"

_TEXT, _VARIABLE = 3, 9  # classes of types
# Messages of object headers (section IV.A.2 of the specification).
_DATASPACE, _DATATYPE, _LAYOUT, _FILTERS, _ATTRIBUTE = 0x1, 0x3, 0x8, 0xB, 0xC
_CONTINUATION, _SYMBOLS, _LINK_INFO, _LINK, _ATTRIBUTE_INFO, _EXTERNAL = 0x10, 0x11, 0x2, 0x6, 0x15, 0x7


@dataclass(slots=True)
class Group:
    """Hold a group: what is in it, by name.

    Attributes:
        groups: The groups inside.
        tensors: The datasets inside: where their bytes lie.
        texts: Its attributes that are lists of texts.
        attributes: The names of all its attributes.
    """

    groups: dict[str, Group] = field(default_factory=dict)
    tensors: dict[str, FileTensor] = field(default_factory=dict)
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)

    def walk(self, prefix: str = "") -> Iterator[tuple[str, FileTensor]]:
        """Yield the path and the place of each dataset below, in the file's order."""
        for name, tensor in self.tensors.items():
            yield prefix + name, tensor
        for name, group in self.groups.items():
            yield from group.walk(f"{prefix}{name}/")


def open_hdf5(path: str | PathLike[str]) -> Group:
    """Return the root group of a file with all that is in it; no data is read.

    Raises:
        FormatError: if the file is damaged, made to do harm, of HDF5's newer layouts, or holds a dataset
            whose bytes are not one run of the file (chunked, compressed, external, never written).
    """
    name = fspath(path)
    with open_binary(name) as file:
        return _File(Window(file, name), name).root()


class _Bytes:
    """Take numbers and texts from bytes, in order."""

    __slots__ = ("_at", "_data", "_path", "what")

    def __init__(self, data: bytes, path: str, what: str) -> None:
        self._data, self._path, self._at, self.what = data, path, 0, what

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        end = self._at + size
        if size < 0 or end > len(self._data):
            _fail(self._path, f"{self.what} ends early")
        part = self._data[self._at : end]
        self._at = end
        return part

    def skip(self, size: int) -> None:
        self.take(size)

    def left(self) -> int:
        return len(self._data) - self._at


def _fail(path: str, message: str, hint: str | None = None) -> NoReturn:
    raise FormatError(message, where=path, hint=hint)


@dataclass(slots=True)
class _Header:
    """The messages of an object that matter here; attributes by name."""

    messages: dict[int, bytes] = field(default_factory=dict)
    attributes: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    layout_at: int = 0


class _File:
    """Walk the objects of one open file."""

    def __init__(self, window: Window, path: str) -> None:
        self._window, self._path = window, path
        self._seen: set[int] = set()
        self._left = _TIMES * window.size  # bytes of structure that may still be read
        self._heaps: dict[int, dict[int, bytes]] = {}

    def root(self) -> Group:
        if self._window.size < 96 or self._window.read_at(0, 8) != _SIGNATURE:
            _fail(self._path, "not an HDF5 file (its first bytes are others)")
        head = _Bytes(self._window.read_at(8, 88), self._path, "the superblock")
        version = head.number(1)
        if version > 1:
            _fail(self._path, f"HDF5 of superblock version {version}; 0 and 1 are read", _RESAVE)
        head.skip(4)
        if (head.number(1), head.number(1)) != (8, 8):
            _fail(self._path, "the superblock has offsets or lengths of other than 8 bytes")
        head.skip(9 if version == 0 else 13)
        if head.number(8) != 0:
            _fail(self._path, "the file has a base address", _RESAVE)
        head.skip(8)
        end = head.number(8)
        if end > self._window.size:
            _fail(
                self._path,
                f"the file is cut off: {self._window.size:,} bytes of {end:,}",
                "copy the file again",
            )
        head.skip(16)
        return self._group(head.number(8), "", 0)

    def _once(self, address: int, what: str) -> None:
        """Refuse to come to a place twice: links in a circle, or nodes that name each other."""
        if address in self._seen:
            _fail(self._path, f"{what} at byte {address:,} is reached twice: the file goes round in a circle")
        self._seen.add(address)

    def _group(self, address: int, name: str, depth: int) -> Group:
        if depth > _MOST_DEPTH:
            _fail(self._path, f"groups lie in groups {depth} deep: {short(name)}")
        header = self._header(address, name)
        found = Group(
            texts={k: v for k, v in header.attributes.items() if v is not None},
            attributes=set(header.attributes),
        )
        if _SYMBOLS not in header.messages:
            _fail(self._path, f"the group {short(name) or '/'} is of HDF5's newer layout", _RESAVE)
        table = _Bytes(header.messages[_SYMBOLS], self._path, "a symbol table message")
        tree, heap = table.number(8), table.number(8)
        names = self._names(heap)
        for offset, child in self._entries(tree, depth=0):
            self._add(found, name, self._name(names, offset), child, depth)
        return found

    def _add(self, group: Group, path: str, name: str, address: int, depth: int) -> None:
        if not name or name in (".", "..") or "/" in name or name in group.groups or name in group.tensors:
            _fail(self._path, f"the group {short(path) or '/'} has a member named {short(name)!r} (or twice)")
        whole = f"{path}/{name}" if path else name
        kinds = self._kinds(address)
        if _SYMBOLS in kinds or _LINK_INFO in kinds or _LINK in kinds:
            group.groups[name] = self._group(address, whole, depth + 1)
        elif _LAYOUT in kinds:
            group.tensors[name] = self._tensor(address, whole)
        else:
            _fail(self._path, f"{short(whole)} is neither a group nor a dataset")

    def _kinds(self, address: int) -> set[int]:
        return {kind for kind, _, _, _ in self._messages(address)}

    def _messages(self, address: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield type, flags, position and size of each message of an object header of version 1."""
        first = _Bytes(self._read(address, 16), self._path, "an object header")
        if first.number(1) != 1:
            _fail(self._path, f"the object at byte {address:,} has no header of version 1", _RESAVE)
        first.skip(1)
        count = first.number(2)
        first.skip(4)
        blocks = [(address + 16, first.number(4))]
        known = {address + 16}
        for at, size in blocks:  # grows by what continues it
            block = _Bytes(self._read(at, size), self._path, f"the object header at byte {address:,}")
            end = at + size
            while block.left() >= 8 and count:
                kind, length, flags = block.number(2), block.number(2), block.number(1)
                block.skip(3)
                place = end - block.left()
                data = block.take(length)
                count -= 1
                if kind == _CONTINUATION:
                    more = _Bytes(data, self._path, "a continuation message")
                    there = more.number(8)
                    if there in known:
                        _fail(self._path, f"the object header at byte {address:,} continues in a circle")
                    known.add(there)
                    blocks.append((there, more.number(8)))
                else:
                    yield kind, flags, place, length

    def _header(self, address: int, name: str) -> _Header:
        self._once(address, f"the object {short(name) or '/'}")
        found = _Header()
        for kind, flags, at, size in self._messages(address):
            if kind not in (_DATASPACE, _DATATYPE, _LAYOUT, _FILTERS, _ATTRIBUTE, _SYMBOLS, _EXTERNAL):
                if kind == _ATTRIBUTE_INFO:
                    _fail(self._path, f"attributes of {short(name) or '/'} are of a newer layout", _RESAVE)
                continue
            if flags & 2:
                _fail(self._path, f"{short(name) or '/'} shares a part of its header with others", _RESAVE)
            data = self._read(at, size)
            if kind == _ATTRIBUTE:
                key, value = self._attribute(data)
                found.attributes[key] = value
            elif kind in found.messages:
                _fail(self._path, f"the header of {short(name) or '/'} says one thing twice")
            else:
                found.messages[kind] = data
                if kind == _LAYOUT:
                    found.layout_at = at
        return found

    def _attribute(self, data: bytes) -> tuple[str, tuple[str, ...] | None]:
        """Return an attribute's name, and its texts if it is a list of texts of one length."""
        part = _Bytes(data, self._path, "an attribute")
        version = part.number(1)
        if version not in (1, 2, 3):
            _fail(self._path, f"an attribute of version {version}")
        part.skip(1)
        sizes = [part.number(2) for _ in range(3)]
        if version == 3:
            part.skip(1)
        name, kind, space = (part.take(n + (-n % 8 if version == 1 else 0))[:n] for n in sizes)
        key = self._text(name.split(b"\0")[0], "an attribute's name")
        shape = self._shape(space, key)
        count = prod(shape) if shape is not None else 0
        if count == 0:
            return key, ()
        form = _Bytes(kind, self._path, f"the type of the attribute {short(key)}")
        what, bits, size = form.number(1) & 0x0F, form.number(3), form.number(4)
        if what != _TEXT and (what != _VARIABLE or bits & 0x0F != 1 or size != 16):
            return key, None
        part.what = f"the attribute {short(key)}"
        raw = part.take(size * count)
        items = [raw[i * size : (i + 1) * size] for i in range(count)]
        texts = items if what == _TEXT else [self._heaped(item) for item in items]
        return key, tuple(self._text(t.split(b"\0")[0], part.what) for t in texts)

    def _heaped(self, item: bytes) -> bytes:
        """Return the text an element stands for: it holds a length, a heap, a number there."""
        length, address = int.from_bytes(item[:4], "little"), int.from_bytes(item[4:12], "little")
        if length == 0:
            return b""
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        text = self._heaps[address].get(int.from_bytes(item[12:], "little"))
        if text is None or length > len(text) or length > _LONGEST:
            _fail(self._path, f"a text of {length:,} bytes is not in the heap at byte {address:,}")
        return text[:length]

    def _heap(self, address: int) -> dict[int, bytes]:
        """Return the objects of a collection of the global heap by their numbers."""
        head = _Bytes(self._read(address, 16), self._path, f"the heap at byte {address:,}")
        if head.take(4) != b"GCOL":
            _fail(self._path, f"no heap of texts at byte {address:,}")
        head.skip(4)
        held = _Bytes(self._read(address + 16, head.number(8) - 16), self._path, head.what)
        found: dict[int, bytes] = {}
        while held.left() >= 16:
            number = held.number(2)
            held.skip(6)
            size = held.number(8)
            if number == 0:  # what is free
                break
            found[number] = held.take(size)
            held.skip(min(-size % 8, held.left()))
        return found

    def _tensor(self, address: int, name: str) -> FileTensor:
        """Locate a dataset's bytes."""
        header = self._header(address, name)
        messages = header.messages
        if _FILTERS in messages:
            _fail(self._path, f"the dataset {short(name)} is compressed or filtered", _RESAVE)
        if _EXTERNAL in messages:
            _fail(self._path, f"the data of {short(name)} lies in another file", _RESAVE)
        if _DATASPACE not in messages or _DATATYPE not in messages:
            _fail(self._path, f"the dataset {short(name)} has no shape or no type")
        shape = self._shape(messages[_DATASPACE], name)
        if shape is None:
            _fail(self._path, f"the dataset {short(name)} has no data space")
        dtype = self._dtype(messages[_DATATYPE], name)
        size = prod(shape) * dtype.itemsize
        offset = self._place(messages[_LAYOUT], header.layout_at, name, size)
        if offset + size > self._window.size:
            _fail(
                self._path,
                f"the data of {short(name)} ends at byte {offset + size:,}; the file has "
                f"{self._window.size:,}",
                "copy the file again",
            )
        return FileTensor(dtype, shape, contiguous_stride(shape), self._path, offset, (offset, size))

    def _place(self, data: bytes, at: int, name: str, size: int) -> int:
        """Return the byte a dataset's data starts at."""
        layout = _Bytes(data, self._path, f"the layout of {short(name)}")
        version, kind = layout.number(1), layout.number(1)
        if version not in (3, 4):
            _fail(self._path, f"the dataset {short(name)} has a layout of version {version}", _RESAVE)
        if kind == 0:
            if layout.number(2) != size:
                _fail(self._path, f"the dataset {short(name)} has another size than its shape says")
            return at + 4
        if kind != 1:
            what = "chunked" if kind == 2 else f"laid out as no run of bytes (class {kind})"
            _fail(self._path, f"the dataset {short(name)} is {what}", _RESAVE)
        offset, held = layout.number(8), layout.number(8)
        if size == 0:
            return 0
        if offset == _UNDEFINED:
            _fail(self._path, f"the dataset {short(name)} was never written", "save the model again")
        if held != size:
            _fail(self._path, f"the dataset {short(name)} has {held:,} bytes, its shape says {size:,}")
        return offset

    def _shape(self, data: bytes, name: str) -> tuple[int, ...] | None:
        """Read a dataspace message; None if it is the null space, which holds nothing."""
        part = _Bytes(data, self._path, f"the shape of {short(name)}")
        version, rank = part.number(1), part.number(1)
        if version not in (1, 2) or rank > _MOST_DIMS:
            _fail(self._path, f"the shape of {short(name)} is none (version {version}, {rank} dimensions)")
        part.skip(1)
        if version == 1:
            part.skip(5)
        elif part.number(1) == 2:
            return None
        shape = tuple(part.number(8) for _ in range(rank))
        if any(n >= 1 << 62 for n in shape):
            _fail(self._path, f"the dataset {short(name)} has a shape that is none: {shape}")
        return shape

    def _dtype(self, data: bytes, name: str) -> DType:
        """Read a datatype message: little-endian numbers of the usual forms."""
        part = _Bytes(data, self._path, f"the type of {short(name)}")
        kind, bits, size = part.number(1) & 0x0F, part.number(3), part.number(4)
        found: str | None = None
        if kind == 0 and bits & 1 == 0 and (part.number(2), part.number(2)) == (0, 8 * size):
            found = f"{'' if bits & 8 else 'u'}int{8 * size}"
        elif kind == 1 and bits & 0x41 == 0 and part.left() >= 12:
            part.skip(2)
            form = tuple(part.number(n) for n in (2, 1, 1, 1, 1))
            found = _FLOATS.get((size, form[0], form[2], form[4]))
        elif kind == 8 and size == 1:
            found = "bool"  # h5py's form of numpy's: an enumeration of FALSE and TRUE
        if found is None or found not in BY_NAME:
            _fail(
                self._path,
                f"the dataset {short(name)} has elements of a type ckptconv does not know "
                f"(HDF5 class {kind}, {size} bytes)",
                "save it as little-endian numbers",
            )
        return BY_NAME[found]

    def _entries(self, address: int, depth: int) -> Iterator[tuple[int, int]]:
        """Yield name offset and object address of all entries below a node of a group's B-tree."""
        if address == _UNDEFINED and depth == 0:
            return
        self._once(address, "a node of a group")
        if depth > _MOST_DEPTH:
            _fail(self._path, "the tree of a group is too deep")
        sign = self._read(address, 8)
        node = _Bytes(sign[4:], self._path, f"the node at byte {address:,}")
        if sign[:4] == b"SNOD":
            node.skip(2)
            count = node.number(2)
            table = _Bytes(self._read(address + 8, 40 * count), self._path, "a symbol table node")
            for _ in range(count):
                offset, target, cache = table.number(8), table.number(8), table.number(4)
                table.skip(20)
                if cache == 2:
                    _fail(self._path, "a group has a soft link", _RESAVE)
                yield offset, target
            return
        kind, _, count = node.number(1), node.number(1), node.number(2)
        if sign[:4] != b"TREE" or kind != 0:
            _fail(self._path, f"no node of a group at byte {address:,}")
        table = _Bytes(self._read(address + 24, 8 + 16 * count), self._path, "a node of a group")
        for _ in range(count):
            table.skip(8)
            yield from self._entries(table.number(8), depth + 1)

    def _names(self, address: int) -> bytes:
        """Return the bytes of a local heap: the names of a group's members."""
        head = _Bytes(self._read(address, 32), self._path, f"the names at byte {address:,}")
        if head.take(4) != b"HEAP":
            _fail(self._path, f"no names of a group at byte {address:,}")
        head.skip(4)
        size = head.number(8)
        head.skip(8)
        at = head.number(8)
        self._once(at, "the names of a group")
        return self._read(at, size)

    def _name(self, names: bytes, offset: int) -> str:
        end = names.find(b"\0", offset)
        if offset >= len(names) or end < 0:
            _fail(self._path, f"a name at {offset:,} of {len(names):,} bytes of names")
        return self._text(names[offset:end], "a name")

    def _text(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            _fail(self._path, f"{what} is not UTF-8: {raw[:40]!r}")

    def _read(self, address: int, size: int) -> bytes:
        self._left -= max(size, 0)
        if not 0 <= size <= _MOST_HEADER or self._left < 0:
            _fail(
                self._path,
                f"{size:,} bytes of structure at byte {address:,}: more than can be",
            )
        return self._window.read_at(address, size)


# Bytes, precision, size of the exponent, size of the mantissa (IEEE, and bfloat16 as ml_dtypes registers it).
_FLOATS: Final[Mapping[tuple[int, int, int, int], str]] = {
    (8, 64, 11, 52): "float64",
    (4, 32, 8, 23): "float32",
    (2, 16, 5, 10): "float16",
    (2, 16, 8, 7): "bfloat16",
}
