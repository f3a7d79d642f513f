"""Read the metadata of a PyTorch distributed checkpoint (DCP): which chunk of which tensor is in which bytes.

A folder holds ``.metadata``, a pickle, and ``*.distcp`` files of records, each a container of ``torch.save``
of its own (torch 2.13, ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py``). Megatron-core's
``torch_dist`` is the same container with other names in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Final, TypeGuard

from ckptconv.containers.base import FileTensor
from ckptconv.containers.dcp.dcprecord import RecordReader
from ckptconv.containers.torch import inert
from ckptconv.containers.torch.picklevm import Global, Record, short
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.dtypes import BY_NAME, DType
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.inside import is_inside
from ckptconv.places.places import place
from ckptconv.places.regular import read_bytes

__all__ = ["METADATA", "Chunk", "DcpFolder", "DcpTensor", "Entry", "open_dcp"]

METADATA: Final = ".metadata"

# 300,000 entries are a pickle of 50 MB, twice that with the plans that Megatron adds.
_LIMITS: Final = inert.Limits(size=1 << 29)
_MAX_DIMS: Final = 64
_MAX_SIZE: Final = 1 << 62
_MAX_NAME: Final = 4096

_TORCH: Final = "torch.distributed.checkpoint."
# The plans of all ranks, which Megatron-core keeps for its next save (core 0.16.1,
# dist_checkpointing/strategies/state_dict_saver.py), say nothing that the rest does not. A call that gives a
# tuple is not given the object's state, so half of the file takes no memory.
_UNUSED: Final[dict[str, inert.Hook]] = {
    f"{_TORCH}planner.{name}": lambda args: ()
    for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")
}
_UNUSED["megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlan"] = lambda args: ()

_ABSENT: Final = object()
_FOREIGN: Final = (
    "it was written by another storage than torch's FileSystemWriter; load and save it with "
    "torch.distributed.checkpoint"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """Locate a record: its file, relative to the folder, and its bytes."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor that is stored as one record: ``offsets`` and ``sizes`` along each axis.

    ``entry`` is None where the box has no elements (a rank for which no row was left).
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class DcpTensor:
    """A whole tensor: element type, shape, and the chunks it is cut into, in the file's order.

    ``odd`` names an element type that cannot be read; ``dtype`` means nothing then, and it is not located.
    """

    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    odd: str | None = None

    @property
    def nbytes(self) -> int:
        if self.odd is not None:
            return sum(c.entry.length for c in self.chunks if c.entry is not None)
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class DcpFolder:
    """Hold what ``.metadata`` says.

    Attributes:
        folder: Where ``.metadata`` and the files of records are.
        version: The format's version; None where it is not told (older torch).
        tensors: By name, in the order of the metadata.
        objects: What is not a tensor (step counts, random states), by name: a saved object in each record.
        paths: The keys that led to a name in the nested state dict that was saved, where that is told.
    """

    folder: Path
    version: str | None
    tensors: Mapping[str, DcpTensor]
    objects: Mapping[str, Entry]
    paths: Mapping[str, tuple[str | int, ...]]

    def locate(self, names: Iterable[str]) -> dict[str, tuple[FileTensor | None, ...]]:
        """Find the bytes of each chunk of these tensors; opens their files, reads no tensor data.

        Returns:
            For each name one located tensor a chunk, of the chunk's shape; None for an empty chunk.

        Raises:
            PlanError: if a file is missing, chunks have more or fewer elements than their tensor, two records
                share bytes, or a record is not what the metadata says.
            FormatError: if a tensor is of a type that cannot be read, a record is damaged, or it reaches
                beyond the end of its file.
        """
        places: list[tuple[Entry, str, int]] = []
        found: dict[str, list[FileTensor | None]] = {}
        for name in names:
            tensor = self.tensors[name]
            if tensor.odd is not None:
                raise FormatError(
                    f"{name}: a tensor of the unknown type {short(tensor.odd)}", where=self.folder / METADATA
                )
            _check_volume(name, tensor, self.folder)
            found[name] = [None] * len(tensor.chunks)
            places += [(c.entry, name, i) for i, c in enumerate(tensor.chunks) if c.entry is not None]
        places.sort(key=lambda p: (p[0].file, p[0].offset))
        for (a, one, _), (b, two, _) in pairwise(places):
            if a.file == b.file and a.offset + a.length > b.offset:
                raise PlanError(
                    f"the record of {two} at byte {b.offset:,} begins inside that of {one}",
                    where=self.folder / a.file,
                )
        with RecordReader(self.folder) as reader:
            for entry, name, i in places:
                tensor = self.tensors[name]
                found[name][i] = reader.tensor(
                    name, entry.file, entry.offset, entry.length, tensor.dtype, tensor.chunks[i].sizes
                )
        return {name: tuple(chunks) for name, chunks in found.items()}

    def read_object(self, name: str) -> object:
        """Read an object as inert values: plain containers, numbers and text, records of all else.

        Raises:
            PlanError: if its file is missing.
            FormatError: if it is damaged or hostile.
        """
        entry = self.objects[name]
        path = self.folder / entry.file
        if not path.is_file():
            raise PlanError(f"the file {entry.file} is missing; {name} lies in it", where=self.folder)
        return open_torch(path, offset=entry.offset, length=entry.length).root


def open_dcp(folder: str | os.PathLike[str]) -> DcpFolder:
    """Read ``.metadata`` of a folder; no file of records is opened.

    Raises:
        FormatError: if it is damaged, hostile, or of a form that cannot be read: records that extensions
            transformed (compressed), files outside the folder.
        PlanError: if a chunk has no record, or lies outside its tensor.
    """
    base = place(folder)
    path = base / METADATA
    if not path.is_file():
        raise FormatError("no .metadata in this folder", where=base, hint="copy it; it is written last")
    root = inert.load(read_bytes(path, most=_LIMITS.size), hooks=_UNUSED, limits=_LIMITS, where=path)
    # The fields say what it is: core 0.15 saves a subclass (``dist_checkpointing/strategies/torch.py``,
    # ``MCoreMetadata``), as others may.
    if type(root) is not Record or not _has(root, "state_dict_metadata", "storage_data"):
        what = short(root.cls) if type(root) is Record else f"a {type(root).__name__}"
        raise FormatError(
            f"not the metadata of a distributed checkpoint: it holds {what}", where=path, hint=_FOREIGN
        )
    state, stored = root.get("state_dict_metadata"), root.get("storage_data")
    if type(state) is not dict or type(stored) is not dict:
        raise FormatError("the metadata lists no tensors or no records", where=path)
    entries = _entries(stored, path)
    tensors: dict[str, DcpTensor] = {}
    objects: dict[str, Entry] = {}
    for name, what in state.items():
        if type(name) is not str or len(name) > _MAX_NAME or type(what) is not Record:
            raise FormatError(f"an entry that is none: {short(str(name))}", where=path)
        if _has(what, "properties", "size", "chunks"):
            tensors[name] = _tensor(name, what, entries, path)
        elif what.callee.name == "BytesStorageMetadata":
            objects[name] = _entry_of(name, None, entries, path)
        else:
            raise FormatError(f"{name}: an entry of the unknown kind {short(what.cls)}", where=path)
    version = root.get("version")
    return DcpFolder(
        base, version if type(version) is str else None, tensors, objects, dict(_paths(root, state))
    )


def _has(record: Record, *fields: str) -> bool:
    """Whether an object has these attributes, whatever its class is called."""
    return all(record.get(f, _ABSENT) is not _ABSENT for f in fields)


_Key = tuple[str, tuple[int, ...] | None]


def _entries(stored: dict[object, object], path: Path) -> dict[_Key, Entry]:
    """Return the records by name and offset of the chunk, None for an object."""
    entries: dict[_Key, Entry] = {}
    files: dict[str, str] = {}  # one string for each file, however many records it has
    for index, info in stored.items():
        if type(index) is not Record or not _has(index, "fqn"):
            raise FormatError("a record is listed under something that is no index", where=path)
        name, offset = index.get("fqn"), index.get("offset")
        if type(name) is not str or not (offset is None or _is_sizes(offset)):
            raise FormatError("a record is listed without name or with an offset that is none", where=path)
        if type(info) is not Record or not _has(info, "relative_path", "offset", "length"):
            kind = info.cls if type(info) is Record else type(info).__name__
            raise FormatError(
                f"{name}: its place is told in a form that is not known: {short(kind)}",
                where=path,
                hint=_FOREIGN,
            )
        if info.get("transform_descriptors"):
            raise FormatError(
                f"{name}: its record was transformed by an extension (compressed or encrypted)",
                where=path,
                hint="load the checkpoint with torch and save it without extensions",
            )
        key: _Key = (name, offset)
        if key in entries:
            raise FormatError(f"{name}: two records are listed for the chunk at {offset}", where=path)
        file, place = info.get("relative_path"), (info.get("offset"), info.get("length"))
        if type(file) is not str or not _is_sizes(place):
            raise FormatError(f"{name}: a record without file, offset and length", where=path)
        entries[key] = Entry(files.setdefault(file, _inside(file, path)), *place)
    return entries


def _inside(file: str, path: Path) -> str:
    if not is_inside(file):
        raise FormatError(f"the metadata names a file outside its folder: {short(file)}", where=path)
    return file


def _tensor(name: str, what: Record, entries: Mapping[_Key, Entry], path: Path) -> DcpTensor:
    properties, shape, chunks = what.get("properties"), what.get("size"), what.get("chunks")
    if not _is_sizes(shape) or type(chunks) is not list:
        raise FormatError(f"{name}: a tensor without shape or chunks", where=path)
    cut = []
    for chunk in chunks:
        sizes = chunk.get("sizes") if type(chunk) is Record else None
        offsets = chunk.get("offsets") if type(chunk) is Record else None
        if not _is_sizes(sizes) or not _is_sizes(offsets):
            raise FormatError(f"{name}: a chunk without offsets and sizes", where=path)
        inside = len(sizes) == len(offsets) == len(shape) and all(
            a + n <= whole for a, n, whole in zip(offsets, sizes, shape, strict=True)
        )
        if not inside:
            raise PlanError(f"{name}: a chunk of {sizes} at {offsets} leaves the tensor {shape}", where=path)
        entry = _entry_of(name, offsets, entries, path) if 0 not in sizes else None
        cut.append(Chunk(offsets, sizes, entry))
    dtype, odd = _dtype(properties)
    return DcpTensor(dtype, shape, tuple(cut), odd)


def _entry_of(name: str, offset: tuple[int, ...] | None, entries: Mapping[_Key, Entry], path: Path) -> Entry:
    found = entries.get((name, offset))
    if found is None:
        what = "it" if offset is None else f"its chunk at {offset}"
        raise PlanError(f"{name}: the metadata does not say in which file {what} is", where=path)
    return found


def _dtype(properties: object) -> tuple[DType, str | None]:
    """Read the element type: the first of ``TensorProperties.__getstate__``, or a key of its state."""
    kind: object = None
    if type(properties) is Record:
        state = properties.state
        kind = state[0] if type(state) is tuple and state and type(state[0]) is Global else None
        kind = properties.get("dtype") if kind is None else kind
    if type(kind) is not Global or kind.module != "torch" or kind.name not in BY_NAME:
        return BY_NAME["uint8"], kind.qualified if type(kind) is Global else "nothing"
    return BY_NAME[kind.name], None


def _paths(root: Record, names: Mapping[object, object]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Yield the path of each name (``DefaultSavePlanner.mappings``; Megatron keeps none)."""
    data = root.get("planner_data")
    for name, path in data.items() if type(data) is dict else ():
        if type(name) is str and name in names and type(path) is tuple:
            keys = tuple([key for key in path if type(key) is str or type(key) is int])
            if keys and len(keys) == len(path):
                yield name, keys


def _is_sizes(values: object) -> TypeGuard[tuple[int, ...]]:
    return (
        type(values) is tuple
        and len(values) <= _MAX_DIMS
        and all(type(n) is int and 0 <= n < _MAX_SIZE for n in values)
    )


def _check_volume(name: str, tensor: DcpTensor, folder: Path) -> None:
    """Refuse chunks that together have more or fewer elements than their tensor.

    Those that overlap and leave a gap of the same size are left to whoever relates them to the whole.
    """
    have, want = sum(prod(c.sizes) for c in tensor.chunks), prod(tensor.shape)
    if have != want:
        what = "overlap" if have > want else "leave a gap"
        raise PlanError(
            f"{name}: its chunks {what}: they have {have:,} elements, the tensor {list(tensor.shape)} has "
            f"{want:,}",
            where=folder / METADATA,
        )
