"""Read ``.metadata`` of a distributed checkpoint: tensors, their chunks, and where the record of each lies.

Classes are torch's (torch 2.13, ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py``) and those of
others with the same fields: megatron-core 0.15 saves a ``Metadata`` of its own
(``dist_checkpointing/strategies/torch.py``, ``MCoreMetadata``), OLMo-core a ``_StorageInfo``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from operator import add, gt
from pathlib import Path
from typing import Any, Final, TypeGuard

from ckptconv.collector import without_collector
from ckptconv.containers.dcp.columns import (
    MAX_DIMS,
    MAX_SIZE,
    Chunk,
    Entry,
    Key,
    Sizes,
    chunks_alike,
    entries_alike,
)
from ckptconv.containers.dcp.fields import Fields, class_of, is_object, items_of, state_of
from ckptconv.containers.torch import inert, quick
from ckptconv.containers.torch.picklevm import short
from ckptconv.dtypes import BY_NAME, DType
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.inside import is_inside
from ckptconv.places.regular import read_bytes
from ckptconv.records import dataclass

__all__ = ["Chunk", "DcpTensor", "Entry", "Told", "read_metadata"]

# 300,000 entries are a pickle of 50 MB, twice that with the plans that Megatron adds.
_LIMITS: Final = inert.Limits(size=1 << 29)
_LARGE: Final = 1 << 20  # bytes from which on the guard of `quick` costs less than it spares
_INTS: Final = [(int,) * n for n in range(MAX_DIMS + 1)]
_MAX_NAME: Final = 4096

# The plans of all ranks, which Megatron-core keeps for its next save (core 0.16.1,
# dist_checkpointing/strategies/state_dict_saver.py), say nothing that the rest does not. A call that gives a
# tuple is not given the object's state, so half of the file takes no memory.
_PLANS: Final = b"all_local_plans"
_UNUSED: Final = (
    *(
        f"torch.distributed.checkpoint.planner.{name}"
        for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")
    ),
    "megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlan",
)
_HOOKS: Final[dict[str, inert.Hook]] = dict.fromkeys(_UNUSED, lambda args: ())

_METADATA: Final = Fields("state_dict_metadata", "storage_data")
_VERSION: Final = Fields("version")
_PLANNER: Final = Fields("planner_data")
_INDEX: Final = Fields("fqn", "offset")
_NAMED: Final = Fields("fqn")
_PLACE: Final = Fields("relative_path", "offset", "length")
_TRANSFORMED: Final = Fields("transform_descriptors")
_TENSOR: Final = Fields("properties", "size", "chunks")
_CHUNK: Final = Fields("offsets", "sizes")
_DTYPE: Final = Fields("dtype")
_FOREIGN: Final = (
    "it was written by another storage than torch's FileSystemWriter; load and save it with "
    "torch.distributed.checkpoint"
)


@dataclass(frozen=True, slots=True)
class DcpTensor:
    """A whole tensor: element type, shape, and the chunks it is cut into, in the file's order.

    ``odd`` names an element type that cannot be read; ``dtype`` means nothing then, and it is not located.
    """

    dtype: DType
    shape: Sizes
    chunks: tuple[Chunk, ...]
    odd: str | None = None

    @property
    def nbytes(self) -> int:
        if self.odd is not None:
            return sum(c.entry.length for c in self.chunks if c.entry is not None)
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Told:
    """Hold what ``.metadata`` says; the attributes are those of `DcpFolder`."""

    version: str | None
    tensors: Mapping[str, DcpTensor]
    objects: Mapping[str, Entry]
    paths: Mapping[str, tuple[str | int, ...]]


def read_metadata(path: Path, raw: bytes | None = None) -> Told:
    """Read a ``.metadata``.

    Args:
        path: The file.
        raw: Its content, if it lies in an archive.

    Raises:
        FormatError: if it is damaged, hostile, or of a form that cannot be read.
        PlanError: if a chunk has no record, or lies outside its tensor.
    """
    raw = read_bytes(path, most=_LIMITS.size) if raw is None else raw
    with without_collector():
        if len(raw) >= _LARGE:
            raw += bytes(quick.PAD)
            if (told := _quickly(path, raw)) is not None:
                return told
            raw = raw[: -quick.PAD]
        return _Reading(path).told(inert.load(raw, hooks=_HOOKS, limits=_LIMITS, where=path))


def _quickly(path: Path, padded: bytes) -> Told | None:
    """Read a large one; None if the other way has to."""
    root = quick.load(padded, limits=_LIMITS, dropped=_UNUSED, without=_PLANS)
    if root is None:
        return None
    try:
        return _Reading(path).told(root)
    except Exception:  # the other way to read it says what is wrong
        return None


class _Reading:
    """Go through what one ``.metadata`` holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: set[object] = set()
        self._entries: dict[Key, Entry] = {}

    def told(self, root: object) -> Told:
        """Return what it says.

        Raises:
            FormatError: if it is no metadata, or of a form that cannot be read.
            PlanError: if a chunk has no record, or lies outside its tensor.
        """
        found = _METADATA.of(root)
        if found is None:
            cls = class_of(root)
            held = short(cls.qualified) if cls is not None else f"a {type(root).__name__}"
            raise self._bad(f"not the metadata of a distributed checkpoint: it holds {held}", _FOREIGN)
        state, stored = items_of(found[0]), items_of(found[1])
        if state is None or stored is None:
            raise self._bad("the metadata lists no tensors or no records")
        entries = entries_alike(found[1])
        if entries is None:
            self._read_entries(stored)
        else:
            self._entries = entries
        names: dict[str, None] = {}
        objects: dict[str, Entry] = {}
        cut: list[tuple[str, Sizes, list[Any]]] = []
        types: list[tuple[DType, str | None]] = []
        for name, what in state:
            kind = class_of(what)
            if type(name) is not str or len(name) > _MAX_NAME or kind is None or not is_object(what):
                raise self._bad(f"an entry that is none: {short(str(name))}")
            if name in names or name in objects:
                raise self._bad(f"{name}: listed twice")
            about = _TENSOR.of(what)
            if about is not None:
                properties, shape, chunks = about
                if not self._are_sizes(shape) or type(chunks) is not list:
                    raise self._bad(f"{name}: a tensor without shape or chunks")
                names[name] = None
                cut.append((name, shape, chunks))
                types.append(_dtype(properties))
            elif kind.name == "BytesStorageMetadata":
                objects[name] = self._entry(name, None)
            else:
                raise self._bad(f"{name}: an entry of the unknown kind {short(kind.qualified)}")
        chunks_of = chunks_alike(cut, self._entries) or (self._chunks(*one) for one in cut)
        tensors = {
            name: DcpTensor(dtype, shape, held, odd)
            for (name, shape, _), (dtype, odd), held in zip(cut, types, chunks_of, strict=True)
        }
        version = (_VERSION.of(root) or (None,))[0]
        paths = dict(_paths((_PLANNER.of(root) or (None,))[0], tensors.keys() | objects.keys()))
        return Told(version if type(version) is str else None, tensors, objects, paths)

    def _bad(self, message: str, hint: str | None = None) -> FormatError:
        return FormatError(message, where=self._path, hint=hint)

    def _are_sizes(self, values: object) -> TypeGuard[Sizes]:
        """Whether a value is a shape or an offset; most are there many times."""
        if type(values) is not tuple or len(values) > MAX_DIMS:
            return False
        if tuple(map(type, values)) != _INTS[len(values)]:  # before it is hashed: tuples may be deep
            return False
        if values not in self._sizes:
            if any(not 0 <= n < MAX_SIZE for n in values):
                return False
            self._sizes.add(values)
        return True

    def _read_entries(self, stored: Iterable[tuple[Any, Any]]) -> None:
        """Keep the records by name and offset of the chunk, None for an object."""
        entries = self._entries
        files: dict[str, str] = {}  # one string for each file, however many records it has
        for index, info in stored:
            key = _INDEX.of(index)
            if key is None:
                only = _NAMED.of(index)
                if only is None:
                    raise self._bad("a record is listed under something that is no index")
                key = (only[0], None)
            name, offset = key
            if type(name) is not str or not (offset is None or self._are_sizes(offset)):
                raise self._bad("a record is listed without name or with an offset that is none")
            place = _PLACE.of(info)
            if place is None:
                kind = class_of(info)
                what = kind.qualified if kind is not None else type(info).__name__
                raise self._bad(
                    f"{name}: its place is told in a form that is not known: {short(what)}", _FOREIGN
                )
            if (_TRANSFORMED.of(info) or (None,))[0]:
                raise self._bad(
                    f"{name}: its record was transformed by an extension (compressed or encrypted)",
                    "load the checkpoint with torch and save it without extensions",
                )
            if key in entries:
                raise self._bad(f"{name}: two records are listed for the chunk at {offset}")
            file, at, length = place
            if type(file) is not str or not (_is_size(at) and _is_size(length)):
                raise self._bad(f"{name}: a record without file, offset and length")
            if file not in files:
                if not is_inside(file):
                    raise self._bad(f"the metadata names a file outside its folder: {short(file)}")
                files[file] = file
            entries[key] = Entry(files[file], at, length)

    def _entry(self, name: str, offset: Sizes | None) -> Entry:
        found = self._entries.get((name, offset))
        if found is None:
            what = "it" if offset is None else f"its chunk at {offset}"
            raise PlanError(f"{name}: the metadata does not say in which file {what} is", where=self._path)
        return found

    def _chunks(self, name: str, shape: Sizes, chunks: list[Any]) -> tuple[Chunk, ...]:
        cut = []
        for chunk in chunks:
            offsets, sizes = _CHUNK.of(chunk) or (None, None)
            if not self._are_sizes(sizes) or not self._are_sizes(offsets):
                raise self._bad(f"{name}: a chunk without offsets and sizes")
            if not len(sizes) == len(offsets) == len(shape) or any(map(gt, map(add, offsets, sizes), shape)):
                raise PlanError(
                    f"{name}: a chunk of {sizes} at {offsets} leaves the tensor {shape}", where=self._path
                )
            cut.append(Chunk(offsets, sizes, self._entry(name, offsets) if 0 not in sizes else None))
        return tuple(cut)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_SIZE


def _dtype(properties: object) -> tuple[DType, str | None]:
    """Read the element type: the first of ``TensorProperties.__getstate__``, or a key of its state."""
    state = state_of(properties)
    first = class_of(state[0]) if type(state) is tuple and state else None
    found = _DTYPE.of(properties) if first is None else None
    kind = class_of(found[0]) if found is not None else first
    if kind is None or kind.module != "torch" or kind.name not in BY_NAME:
        return BY_NAME["uint8"], kind.qualified if kind is not None else "nothing"
    return BY_NAME[kind.name], None


def _paths(data: object, names: Iterable[str]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Yield the path of each name (``DefaultSavePlanner.mappings``; Megatron keeps none)."""
    known = set(names)
    for name, path in items_of(data) or ():
        if type(name) is str and name in known and type(path) is tuple:
            keys = tuple([key for key in path if type(key) is str or type(key) is int])
            if keys and len(keys) == len(path):
                yield name, keys
