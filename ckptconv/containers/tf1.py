"""Read the index of a checkpoint of TensorFlow's saver (``X.index``, ``X.data-00000-of-00001``).

The formats: a table of LevelDB (TensorFlow 2.21, ``core/lib/io/format.cc``, ``table.cc``) whose keys are the
names of variables and whose values are the messages of ``core/protobuf/tensor_bundle.proto``; the data is
raw, row-major tensors (``core/util/tensor_bundle/tensor_bundle.cc``). Every block is compared with its
CRC-32C.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from os import PathLike, fspath
from typing import Final, NoReturn

from ckptconv.containers.base import FileTensor, contiguous_stride
from ckptconv.containers.torch.picklevm import short
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.places import place
from ckptconv.places.regular import open_binary
from ckptconv.places.window import Window

__all__ = ["INDEX", "crc32c", "open_bundle"]

INDEX: Final = ".index"

_MAGIC: Final = 0xDB4775248B80FB57
_FOOTER: Final = 48
_TRAILER: Final = 5  # a byte for the compression, four for the checksum
_MOST_BLOCK: Final = 64 << 20
_MOST_INDEX: Final = 256 << 20
_MOST_KEYS: Final = 1_000_000
_MOST_SHARDS: Final = 100_000
_MOST_NAME: Final = 1 << 16
_MOST_DIMS: Final = 254  # of a TensorShape
_MASK: Final = 0xA282EAD8

# tensorflow/core/framework/types.proto
_DTYPES: Final = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64",
    10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
_NO_NUMBERS: Final = (7, 20, 21)  # texts, resources, variants


def open_bundle(index: str | PathLike[str]) -> tuple[dict[str, FileTensor], tuple[str, ...]]:
    """Return the variables of a checkpoint by name, in the order of the index; no data is read.

    Args:
        index: The file that ends in ``.index``; those with the data lie beside it.

    Returns:
        The tensors, and the names of variables that hold no numbers (texts).

    Raises:
        FormatError: if the index is damaged (its checksums tell), compressed, or its offsets lie.
        PlanError: if a file of data is missing.
    """
    path = fspath(index)
    with open_binary(path) as file:
        window = Window(file, path)
        if window.size > _MOST_INDEX:
            _fail(path, f"an index of {window.size:,} bytes")
        raw = window.read_at(0, window.size)
    entries = _table(raw, path)
    key, header = next(entries, (b"\xff", b""))
    if key != b"":
        _fail(path, "the index has no header")
    count = _header(header, path)
    stem = path.removesuffix(INDEX)
    sizes: dict[int, tuple[str, int]] = {}
    found: dict[str, FileTensor] = {}
    other: list[str] = []
    for key, value in entries:
        name = _name(key, path)
        kind, shape, shard, offset, size = _entry(value, name, path)
        if kind in _NO_NUMBERS:
            other.append(name)
            continue
        if kind not in _DTYPES:
            _fail(path, f"{short(name)} has elements of type {kind}, which ckptconv does not know")
        if shard >= count:
            _fail(path, f"{short(name)} lies in file {shard} of {count}")
        if shard not in sizes:
            sizes[shard] = _data(f"{stem}.data-{shard:05d}-of-{count:05d}", path)
        data, length = sizes[shard]
        dtype = BY_NAME[_DTYPES[kind]]
        if size != prod(shape) * dtype.itemsize:
            _fail(path, f"{short(name)} has {size:,} bytes for {dtype} of shape {shape}"[:400])
        if offset + size > length:
            raise FormatError(
                f"{short(name)} ends at byte {offset + size:,}; the file has {length:,}",
                where=data,
                hint="copy the file again",
            )
        found[name] = FileTensor(dtype, shape, contiguous_stride(shape), data, offset, (offset, size))
    return found, tuple(other)


def _fail(path: str, message: str, hint: str | None = None) -> NoReturn:
    raise FormatError(message, where=path, hint=hint)


def _data(name: str, index: str) -> tuple[str, int]:
    """Return the path and the length of a file of data."""
    path = place(name)
    if not path.is_file():
        raise PlanError(f"{path.name} is missing", where=index, hint="copy every file of the checkpoint")
    return name, path.stat().st_size


def _name(key: bytes, path: str) -> str:
    try:
        name = key.decode()
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable():  # a slice of a partitioned variable has a key of its own form
        _fail(path, f"the index has the key {key[:60]!r}, which is no name of a variable")
    return name


def _table(raw: bytes, path: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, in order."""
    if len(raw) < _FOOTER or int.from_bytes(raw[-8:], "little") != _MAGIC:
        _fail(path, "not the index of a TensorFlow checkpoint, or cut off (its last bytes are others)")
    at = len(raw) - _FOOTER
    for _ in range(2):  # the handle of the metaindex, which holds nothing
        _, at = _varint(raw, at, path)
    offset, at = _varint(raw, at, path)
    size, at = _varint(raw, at, path)
    count, read, last = 0, 0, b""
    for _, handle in _block(raw, offset, size, path):
        start, end = _varint(handle, 0, path)
        length, _ = _varint(handle, end, path)
        read += length
        if read > len(raw):
            _fail(path, "the index names a block of itself twice")
        for key, value in _block(raw, start, length, path):
            count += 1
            if count > _MOST_KEYS or (count > 1 and key <= last):
                _fail(path, f"the index is out of order at its key {count:,}")
            last = key
            yield key, value


def _block(raw: bytes, offset: int, size: int, path: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block, after comparing it with its checksum."""
    end = offset + size
    if size > _MOST_BLOCK or end + _TRAILER > len(raw) or size < 4:
        _fail(path, f"a block of {size:,} bytes at byte {offset:,} of an index of {len(raw):,}")
    if raw[end] != 0:
        _fail(path, f"a block of the index is compressed (form {raw[end]})", "save the checkpoint again")
    stored = int.from_bytes(raw[end + 1 : end + _TRAILER], "little")
    if stored != _masked(crc32c(raw[offset : end + 1])):
        _fail(path, f"the block at byte {offset:,} is not what its checksum says", "copy the file again")
    restarts = int.from_bytes(raw[end - 4 : end], "little")
    stop = end - 4 - 4 * restarts
    if stop < offset:
        _fail(path, f"the block at byte {offset:,} has {restarts:,} restarts")
    key, at = b"", offset
    while at < stop:
        shared, at = _varint(raw, at, path)
        fresh, at = _varint(raw, at, path)
        length, at = _varint(raw, at, path)
        if shared > len(key) or at + fresh + length > stop:
            _fail(path, f"a key or value reaches beyond its block at byte {at:,}")
        key = key[:shared] + raw[at : at + fresh]
        if len(key) > _MOST_NAME:
            _fail(path, f"a key of {len(key):,} bytes")
        at += fresh
        yield key, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int, path: str) -> tuple[int, int]:
    value = 0
    for n, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80 and value < 1 << 64:
            return value, at + n + 1
    _fail(path, f"no number ends after byte {at:,}")


def _fields(raw: bytes, path: str) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of the fields of a message of protobuf."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at, path)
        kind = key & 7
        if kind == 0:
            value, at = _varint(raw, at, path)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, at = _varint(raw, at, path)
        if kind not in (1, 2, 5) or size > len(raw) - at:
            _fail(path, f"a message of the index ends early, or has a field of wire type {kind}")
        part = raw[at : at + size]
        yield key >> 3, part if kind == 2 else int.from_bytes(part, "little")
        at += size


def _header(raw: bytes, path: str) -> int:
    """Return how many files of data there are (BundleHeaderProto)."""
    said = dict(_fields(raw, path))
    count, big = said.get(1, 0), said.get(2, 0)
    if big != 0:
        _fail(path, "the checkpoint is big-endian", "save it on a little-endian machine")
    if not isinstance(count, int) or not 1 <= count <= _MOST_SHARDS:
        _fail(path, f"the header says {count!r} files of data"[:100])
    return count


def _entry(raw: bytes, name: str, path: str) -> tuple[int, tuple[int, ...], int, int, int]:
    """Return type, shape, number of the file, offset and size of a variable (BundleEntryProto)."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0}
    shape: tuple[int, ...] = ()
    for field, value in _fields(raw, path):
        if field in numbers and isinstance(value, int):
            numbers[field] = value
        elif field == 2 and isinstance(value, bytes):
            shape = _shape(value, name, path)
        elif field == 7:
            _fail(
                path,
                f"the variable {short(name)} was partitioned over several machines",
                "save it as a whole (without a partitioner)",
            )
    if any(n >= 1 << 62 for n in numbers.values()):
        _fail(path, f"{short(name)} has an offset or a size that is none")
    return numbers[1], shape, numbers[3], numbers[4], numbers[5]


def _shape(raw: bytes, name: str, path: str) -> tuple[int, ...]:
    sizes: list[int] = []
    for field, value in _fields(raw, path):
        if field == 2 and isinstance(value, bytes):
            size = dict(_fields(value, path)).get(1, 0)
            if not isinstance(size, int) or size >= 1 << 62 or len(sizes) >= _MOST_DIMS:
                _fail(path, f"{short(name)} has a shape that is none")
            sizes.append(size)
        elif field == 3 and value:
            _fail(path, f"{short(name)} has no shape")
    return tuple(sizes)


def _masked(crc: int) -> int:
    """Return a checksum as LevelDB stores it (TensorFlow 2.21, ``core/lib/hash/crc32c.h``)."""
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def _make_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE: Final = _make_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes; an index is short enough for a loop."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF
