"""Read the tensors of a MindSpore checkpoint file, ``.ckpt`` or ``.safetensors``, by their positions.

A ``.ckpt`` is a chain of protobuf ``Checkpoint`` messages (mindspore 2.9, ``train/serialization.py``
``_exec_save``, ``train/checkpoint_pb2.py``), each with one tensor or one piece of a tensor:

    Checkpoint  { repeated Value value = 1; }
    Value       { string tag = 1; oneof { TensorProto tensor = 2; MapTensorProto maptensor = 3; } }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }

A tensor over 512 MiB is several records with one tag, each with the whole shape. With ``crc_check`` the file
ends in ``crc_num`` and the CRC-32 of all before it, 10 bytes, big-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from math import prod
from os import PathLike, fspath
from typing import BinaryIO, Final, Literal

from isal.isal_zlib import crc32

from ckptconv.containers.mindspore.protobuf import Field, Walker, signed
from ckptconv.containers.safetensors import may_say, read_header
from ckptconv.containers.stored import Extent, Stored, from_file_tensor
from ckptconv.containers.torch.picklevm import short
from ckptconv.dtypes import BY_NAME, DType
from ckptconv.errors import FormatError
from ckptconv.places.regular import open_binary
from ckptconv.places.window import Window
from ckptconv.records import dataclass

__all__ = ["DTYPES", "TRAILER", "MindSporeFile", "check_crc", "is_mindspore", "open_mindspore"]

# train/serialization.py, tensor_to_ms_type.
DTYPES: Final[Mapping[str, DType]] = {
    name: BY_NAME[name.lower()]
    for name in (
        "Float64", "Float32", "Float16", "BFloat16", "Int64", "Int32", "Int16", "Int8",
        "UInt64", "UInt32", "UInt16", "UInt8", "Bool",
    )
}  # fmt: skip
TRAILER: Final = b"crc_num"
_TRAILER_SIZE: Final = len(TRAILER) + 10
# The first four bytes, little-endian, of what _encrypt writes; a plain file starts with 0x0a.
_CIPHERS: Final = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}
_MAX_DIMS: Final = 64
_MAX_TEXT: Final = 1 << 20
_CHUNK: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class MindSporeFile:
    """What a file holds; no tensor data is read.

    Attributes:
        path: The file.
        container: Its form.
        tensors: Its tensors in the order of the file; a piece of one is an extent.
        strings: Texts that were saved beside them (``append_dict``).
        metadata: The metadata of a safetensors file.
        crc: The stored CRC-32, if there is one.
    """

    path: str
    container: Literal["ckpt", "safetensors"]
    tensors: Mapping[str, Stored]
    strings: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    crc: int | None = None


def is_mindspore(path: str | PathLike[str]) -> bool:
    """Whether a ``.ckpt`` or ``.safetensors`` file starts as MindSpore's do, encrypted ones included."""
    name = fspath(path)
    try:
        if name.endswith(".safetensors"):
            return may_say(name, '"ms"') and read_header(name)[1].get("format") == "ms"
        with open_binary(name) as file:
            head = file.read(16)
    except (FormatError, OSError):
        return False
    if int.from_bytes(head[:4], "little") in _CIPHERS:
        return True
    length = next((i for i, byte in enumerate(head[1:11], 2) if byte < 0x80), 0)  # of the first two fields
    return head[:1] == b"\n" and length > 0 and head[length : length + 1] == b"\n"


def open_mindspore(path: str | PathLike[str]) -> MindSporeFile:
    """Find the tensors of a file.

    Raises:
        FormatError: if it is encrypted, cut off, damaged or not MindSpore's; if it holds a map parameter or
            4-bit elements.
    """
    name = fspath(path)
    if name.endswith(".safetensors"):
        return _safetensors(name)
    with open_binary(name) as file:
        return _ckpt(file, name)


def check_crc(path: str | PathLike[str]) -> bool:
    """Compare a file with the CRC-32 it holds, reading all of it in small pieces.

    Returns:
        Whether it holds one.

    Raises:
        FormatError: if they differ.
    """
    found = open_mindspore(path)
    if found.crc is None:
        return False
    crc = 0
    with open_binary(found.path) as file:
        window = Window(file, found.path)
        if found.container == "ckpt":
            crc = _stream(window, 0, window.size - _TRAILER_SIZE, crc)
        else:  # train/serialization.py, _exec_save: names and values in the order of the names
            for name in sorted(found.tensors):
                crc = crc32(name.encode(), crc)
                crc = _value_crc(window, found.tensors[name], crc)
    if crc != found.crc:
        raise FormatError(
            f"the CRC-32 is {crc:08x}; the file says {found.crc:08x}",
            where=found.path,
            hint="the file is damaged; copy it again",
        )
    return True


def _stream(window: Window, start: int, size: int, crc: int) -> int:
    for at in range(start, start + size, _CHUNK):
        crc = crc32(window.read_at(at, min(_CHUNK, start + size - at)), crc)
    return crc


def _value_crc(window: Window, tensor: Stored, crc: int) -> int:
    at = tensor.extents[0].offset
    if tensor.shape or tensor.dtype.kind != "int":
        return _stream(window, at, tensor.nbytes, crc)
    # MindSpore takes bytes(array), which for an integer without axes is that many zeros (numpy's __index__).
    count = int.from_bytes(window.read_at(at, tensor.nbytes), "little")
    for done in range(0, min(count, 1 << 32), _CHUNK):
        crc = crc32(bytes(min(_CHUNK, count - done)), crc)
    return crc


# safetensors


def _safetensors(path: str) -> MindSporeFile:
    tensors, metadata = read_header(path)
    for name in tensors:
        if metadata.get(name) == "Int4":
            _refuse_int4(path, name)
    crc = metadata.get("crc_num")
    if crc is not None and not (crc.isascii() and crc.isdigit() and int(crc[:12]) >> 32 == 0):
        raise FormatError(f"crc_num in the metadata is no CRC-32: {short(crc)}", where=path)
    stored = {name: from_file_tensor(t) for name, t in tensors.items()}
    return MindSporeFile(path, "safetensors", stored, {}, metadata, None if crc is None else int(crc))


def _refuse_int4(path: str, name: str) -> None:
    raise FormatError(
        f"the tensor {short(name)} has packed 4-bit elements (Int4)",
        where=path,
        hint="dequantize the model in MindSpore first",
    )


# .ckpt


@dataclass(slots=True)
class _Entry:
    """A tensor as its records tell it, with ``(offset, bytes)`` of each."""

    kind: str
    dims: list[int]
    parts: list[tuple[int, int]]


def _ckpt(file: BinaryIO, path: str) -> MindSporeFile:
    walker = Walker(file, path)
    end, crc = _trailer(Window(file, path))
    entries: dict[str, _Entry] = {}
    last = None
    for value in walker.fields(0, end):
        if value.number != 1 or value.value is not None:
            walker.fail(f"not a MindSpore checkpoint: field {value.number} where a record was expected")
        tag, entry = _record(walker, value)
        known = entries.get(tag)
        if known is None:
            entries[tag] = entry
        elif tag != last:
            walker.fail(f"two tensors are named {short(tag)}")
        elif (known.kind, known.dims) != (entry.kind, entry.dims):
            walker.fail(f"the records of {short(tag)} differ in type or shape")
        else:
            known.parts += entry.parts
        last = tag
    if not entries:
        walker.fail("the file holds no tensors")
    tensors, strings = {}, {}
    for tag, entry in entries.items():
        if entry.kind == "str":
            strings[tag] = _string(walker, tag, entry)
        else:
            tensors[tag] = _stored(walker, tag, entry)
    return MindSporeFile(path, "ckpt", tensors, strings, {}, crc)


def _trailer(window: Window) -> tuple[int, int | None]:
    """Return where the records end, and the CRC-32 behind them."""
    if window.size >= 4:
        scheme = _CIPHERS.get(int.from_bytes(window.read_at(0, 4), "little"))
        if scheme is not None:
            raise FormatError(
                f"the checkpoint is encrypted ({scheme})",
                where=window.path,
                hint="load it in MindSpore with its dec_key, and save it without enc_key",
            )
    if window.size > _TRAILER_SIZE:
        end = window.size - _TRAILER_SIZE
        raw = window.read_at(end, _TRAILER_SIZE)
        if raw.startswith(TRAILER):
            return end, int.from_bytes(raw[len(TRAILER) :], "big")
    return window.size, None


def _record(walker: Walker, value: Field) -> tuple[str, _Entry]:
    """Read a ``Value`` up to its tensor's content."""
    tag: str | None = None
    tensor: Field | None = None
    for f in walker.fields(value.start, value.start + value.size):
        if f.number == 1 and tag is None:
            tag = walker.text(f)
        elif f.number == 2 and f.value is None and tensor is None:
            tensor = f
        elif f.number == 3:
            raise FormatError(
                f"{short(tag or '')} is a MapParameter, which has no shape of its own",
                where=walker.path,
                hint="export it to a tensor in MindSpore first",
            )
        else:
            walker.fail(f"a record has a field {f.number} that MindSpore does not write")
    if tag is None or tensor is None:
        walker.fail(f"the record at byte {value.start:,} has no {'name' if tag is None else 'tensor'}")
    return tag, _entry(walker, tag, tensor)


def _entry(walker: Walker, tag: str, tensor: Field) -> _Entry:
    dims: list[int] = []
    kind: str | None = None
    content: Field | None = None
    for f in walker.fields(tensor.start, tensor.start + tensor.size):
        if f.number == 1:
            dims += [signed(n) for n in walker.integers(f)]
        elif f.number == 2 and kind is None:
            kind = walker.text(f)
        elif f.number == 3 and f.value is None and content is None:
            content = f
        else:
            walker.fail(f"the tensor {short(tag)} has a field {f.number} that MindSpore does not write")
    if kind is None or content is None:
        walker.fail(f"the tensor {short(tag)} has no {'type' if kind is None else 'content'}")
    if len(dims) > _MAX_DIMS or not all(0 <= n < 1 << 62 for n in dims):
        walker.fail(f"the tensor {short(tag)} has a shape that is none: {dims[:8]}")
    return _Entry(kind, dims, [(content.start, content.size)])


def _stored(walker: Walker, tag: str, entry: _Entry) -> Stored:
    if entry.kind == "Int4":
        _refuse_int4(walker.path, tag)
    dtype = DTYPES.get(entry.kind)
    if dtype is None:
        walker.fail(f"the tensor {short(tag)} has the unknown type {short(entry.kind)}")
    total = sum(size for _, size in entry.parts)
    shape = tuple(entry.dims)
    if shape == (0,) and total:  # _load_ckpt_into_param_dict reads such a shape as that of a scalar
        shape = ()
    if total != prod(shape) * dtype.itemsize:
        walker.fail(f"the tensor {short(tag)} has {total:,} bytes for {dtype} of shape {list(shape)}")
    extents = []
    start = 0
    for offset, size in entry.parts:
        if size % dtype.itemsize:
            walker.fail(f"a record of {short(tag)} ends inside an element ({size:,} bytes of {dtype})")
        if size:
            extents.append(Extent(start, walker.path, offset))
        start += size // dtype.itemsize
    return Stored(dtype, shape, tuple(extents) or (Extent(0, walker.path, entry.parts[0][0]),))


def _string(walker: Walker, tag: str, entry: _Entry) -> str:
    """Read a text: numpy's ``U``, four bytes a character, little-endian."""
    raw = b"".join(walker.bytes(Field(3, None, offset, size), _MAX_TEXT) for offset, size in entry.parts[:16])
    try:
        return raw.decode("utf-32-le").rstrip("\0")
    except UnicodeDecodeError:
        walker.fail(f"the text {short(tag)} is not UTF-32")
