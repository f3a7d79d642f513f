"""Read the header of a safetensors file, or lay one out as the safetensors library writes it.

The format: safetensors 0.8, ``safetensors/src/tensor.rs``. An 8-byte little-endian length, that many bytes
of JSON padded with spaces to a multiple of 8, then the tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from os import PathLike, fspath
from typing import Final, NoReturn

from ckptconv.containers.base import FileLayout, FileTensor, Placed, contiguous_stride
from ckptconv.containers.container import Container
from ckptconv.containers.torch.picklevm import short
from ckptconv.dtypes import BY_SAFETENSORS, DType
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.jsonfile import parse_json
from ckptconv.places.regular import open_binary
from ckptconv.places.window import Window

__all__ = ["CONTAINER", "layout", "may_say", "read_header"]

_MAX_HEADER: Final = 100_000_000
_ALIGN: Final = 8
_FIELDS: Final = {"dtype", "shape", "data_offsets"}
_MAX_DIMS: Final = 64
_MAX_SIZE: Final = 1 << 62

# The library sorts tensors by this order of their types (the reverse of its enum), then by name.
_ORDER: Final = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E5M2FNUZ",
    "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip
_RANK: Final = {code: i for i, code in enumerate(_ORDER)}


def read_header(path: str | PathLike[str]) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """Return the tensors of a file in the order of its header, and its metadata.

    Raises:
        FormatError: if the file is damaged: offsets with gaps or overlaps, a length other than the
            header's, duplicate names, an unknown dtype.
    """
    name = fspath(path)
    raw, size = _raw_header(name)
    header = _parse(raw, name)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        _fail(name, "__metadata__ is not a map of text to text")
    start = 8 + len(raw)
    tensors = _tensors(name, header, start)
    at = start
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].storage):
        begin, nbytes = tensor.storage
        if begin != at:
            what = "overlaps the one before" if begin < at else "leaves a gap before it"
            _fail(name, f"the tensor {short(key)} {what}: byte {begin:,}, not {at:,}")
        at += nbytes
    if at != size:
        _fail(name, f"the tensors end at byte {at:,}; the file has {size:,}")
    return tensors, metadata


def may_say(path: str | PathLike[str], word: str) -> bool:
    """Whether a header holds a word, in whatever place: a look that costs no parsing.

    Raises:
        FormatError: if it is no safetensors file, or cut off.
    """
    return word.encode() in _raw_header(fspath(path))[0]


def _raw_header(name: str) -> tuple[bytes, int]:
    """Return a file's header, and how long the file is."""
    with open_binary(name) as file:
        window = Window(file, name)
        length = int.from_bytes(window.read(8), "little")
        if window.size < 8 or length > min(_MAX_HEADER, window.size - 8):
            _fail(
                name, f"not a safetensors file, or cut off: a header of {length:,} bytes in {window.size:,}"
            )
        return window.read_at(8, length), window.size


def _fail(path: str, message: str) -> NoReturn:
    raise FormatError(message, where=path, hint="copy or download the file again")


def _parse(raw: bytes, path: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) != len(pairs):
            _fail(path, "the header names something twice")
        return made

    header = parse_json(
        raw, where=path, what="the header", hint="copy or download the file again", pairs=unique
    )
    if not isinstance(header, dict) or not raw.startswith(b"{"):
        _fail(path, "the header is not a JSON object")
    return header


def _tensors(path: str, header: dict[str, object], start: int) -> dict[str, FileTensor]:
    """Return where each tensor of a header lies; most have the type and shape of one before."""
    known: dict[tuple[str, tuple[int, ...]], FileTensor] = {}
    found: dict[str, FileTensor] = {}
    for key, entry in header.items():
        alike = None
        if type(entry) is dict and entry.keys() == _FIELDS:
            code, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
            if type(code) is str and _are_ints(shape) and _are_ints(span) and len(span) == 2:
                alike = known.get((code, tuple(shape)))
        if alike is None or span[1] - span[0] != alike.storage[1] or not 0 <= span[0] < _MAX_SIZE:
            made = found[key] = _tensor(path, key, entry, start)
            known[entry["dtype"], made.shape] = made  # type: ignore[index]
            continue
        at = start + span[0]
        found[key] = FileTensor(alike.dtype, alike.shape, alike.stride, path, at, (at, alike.storage[1]))
    return found


def _are_ints(values: object) -> bool:
    """Whether a value is a list of whole numbers: none is equal to one of another type then."""
    return type(values) is list and list(map(type, values)) == [int] * len(values)


def _tensor(path: str, key: str, entry: object, start: int) -> FileTensor:
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        _fail(path, f"the entry {short(key)} does not have exactly dtype, shape and data_offsets")
    code, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = BY_SAFETENSORS.get(code) if type(code) is str else None
    if dtype is None:
        raise FormatError(
            f"the tensor {short(key)} has the dtype {short(str(code))}, which ckptconv does not know",
            where=path,
            hint="dequantize the model first, or use a newer ckptconv",
        )
    if not _is_sizes(shape) or len(shape) > _MAX_DIMS or not _is_sizes(span) or len(span) != 2:
        _fail(path, f"the tensor {short(key)} has a shape or offsets that are none")
    begin, end = span
    if end - begin != prod(shape) * dtype.itemsize:
        _fail(path, f"the tensor {short(key)} has {end - begin} bytes for {dtype} of shape {shape}"[:400])
    sizes = tuple(shape)
    at = start + begin
    return FileTensor(dtype, sizes, contiguous_stride(sizes), path, at, (at, end - begin))


def _is_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < _MAX_SIZE for n in values)


def layout(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> FileLayout:
    """Lay out a file byte-identical to what ``safetensors.torch.save_file`` writes.

    Args:
        tensors: Name, element type and shape of each, in any order.
        metadata: Text to text; ``{"format": "pt"}`` by default. Written in the order given, where the
            library's order of several keys is random.

    Raises:
        PlanError: if a name is given twice or a type has no safetensors code.
    """
    ranked: list[tuple[int, str, DType, tuple[int, ...]]] = []
    names: set[str] = set()
    for name, dtype, shape in tensors:
        if name in names or name == "__metadata__":
            raise PlanError(f"the tensor name {short(name)} cannot be written (twice, or reserved)")
        names.add(name)
        if dtype.safetensors is None:
            raise PlanError(
                f"the tensor {short(name)} is {dtype}, which safetensors cannot hold", hint="use --format bin"
            )
        ranked.append((_RANK[dtype.safetensors], name, dtype, shape))
    ranked.sort(key=lambda item: item[:2])

    header: dict[str, object] = {"__metadata__": dict({"format": "pt"} if metadata is None else metadata)}
    if not header["__metadata__"]:
        del header["__metadata__"]
    at = 0
    for _, name, dtype, shape in ranked:
        end = at + prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype.safetensors, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > _MAX_HEADER:
        raise PlanError(
            f"a header of {len(text):,} bytes; readers accept {_MAX_HEADER:,}", hint="lower --max-shard-size"
        )
    text += b" " * (-len(text) % _ALIGN)
    start = 8 + len(text)

    placed: list[Placed] = []
    size = start
    for _, name, dtype, shape in ranked:
        placed.append(Placed(name, dtype, shape, size))
        size += placed[-1].nbytes
    return FileLayout(size, ((0, len(text).to_bytes(8, "little") + text),), tuple(placed))


# The names of files and shards: transformers 5.23, utils/__init__.py (SAFE_WEIGHTS_NAME).
CONTAINER = Container("safetensors", layout, stem="model")
