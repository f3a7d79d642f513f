"""Lay out a PyTorch distributed checkpoint (DCP): files of records, and ``.metadata``.

Each record is an archive of ``torch.save`` of its own, here at a multiple of 64 bytes (torch 2.13,
``torch/distributed/checkpoint/filesystem.py``, ``_write_item``); ``.metadata`` is the pickle of a
``Metadata`` (``torch/distributed/checkpoint/metadata.py``), here in protocol 2, which every release reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Final

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.containers.torch.picklevm import Global, Record, short
from ckptconv.containers.torch.torchbin import ALIGN, TensorRef, complete, joined, layout_tree
from ckptconv.containers.torch.torchpickle import Alike, dump
from ckptconv.dtypes import DType
from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = ["DcpLayout", "OutChunk", "OutObject", "Place", "cut", "describe", "layout"]

VERSION: Final = "1.0.0"  # torch 2.13, torch/distributed/checkpoint/metadata.py
_METADATA: Final = "torch.distributed.checkpoint.metadata"
_FILESYSTEM: Final = "torch.distributed.checkpoint.filesystem"
_OVERHEAD: Final = 4096  # of an archive around a tensor's data, at most


@dataclass(frozen=True, slots=True)
class OutChunk:
    """Declare a box of a tensor that becomes a record.

    Attributes:
        key: Name of its data in the file's layout.
        tensor: Name of the whole tensor.
        dtype: Its element type.
        shape: Its shape.
        offsets: Where the box begins along each axis.
        sizes: How far it goes.
    """

    key: str
    tensor: str
    dtype: DType
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutObject:
    """Declare a saved object; all its names share one record."""

    names: tuple[str, ...]
    value: object


@dataclass(frozen=True, slots=True)
class DcpLayout:
    """Hold the files of records by name, and the content of ``.metadata``."""

    files: Mapping[str, FileLayout]
    metadata: bytes


def cut(
    shape: Sequence[int], itemsize: int, limit: int, *, stacked: int = 0
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a tensor into boxes for records; yield their offsets and sizes.

    Args:
        shape: Its shape.
        itemsize: Bytes of an element.
        limit: The most bytes of a file; a record has no more unless a single row has.
        stacked: How many leading axes stack tensors of one shape, which become records of their own.
    """
    outer, rest = shape[:stacked], tuple(shape[stacked:])
    if 0 in shape:
        yield (0,) * len(shape), tuple(shape)
        return
    row = prod(rest[1:]) * itemsize
    step = max(1, max(limit - _OVERHEAD, 1) // row)
    for at in product(*(range(n) for n in outer)):
        if not rest:
            yield at, (1,) * len(at)
        for start in range(0, rest[0], step) if rest else ():
            zeros = (0,) * (len(rest) - 1)
            yield (*at, start, *zeros), (*(1 for _ in at), min(step, rest[0] - start), *rest[1:])


@dataclass(frozen=True, slots=True)
class Place:
    """Locate a record: its file and its bytes there."""

    file: str
    offset: int
    length: int


def layout(
    chunks: Iterable[OutChunk], objects: Iterable[OutObject] = (), *, limit: int, flat: bool = True
) -> DcpLayout:
    """Lay out a checkpoint.

    Args:
        chunks: The records of tensors, in the order of the files.
        objects: The records of all else; they come first.
        limit: The most bytes of a file, unless one record has more.
        flat: Whether to state that the names are the keys of a flat state dict, as torch's own planner does.

    Raises:
        PlanError: if a name is given twice, or an object cannot be written.
    """
    records: list[FileLayout] = []
    files: dict[str, FileLayout] = {}
    places: dict[tuple[str, tuple[int, ...] | None], Place] = {}
    size = 0

    def add(record: FileLayout) -> Place:
        nonlocal records, size
        size += -size % ALIGN
        if records and size + record.size > limit:
            files[f"__0_{len(files)}.distcp"] = joined(records)
            records, size = [], 0
        place = Place(f"__0_{len(files)}.distcp", size, record.size)
        records.append(record)
        size += record.size
        return place

    def enter(name: str, offsets: tuple[int, ...] | None, place: Place) -> None:
        if (name, offsets) in places:
            raise PlanError(f"{short(name)} is given twice")
        places[name, offsets] = place

    state: dict[str, object] = {}
    for o in objects:
        content = complete(o.value)
        place = add(FileLayout(len(content), ((0, content),), ()))
        for name in o.names:
            enter(name, None, place)
            state[name] = Alike(_object, (), ())
    cuts: dict[str, list[OutChunk]] = {}
    stamp = _Stamp()
    for c in chunks:
        enter(c.tensor, c.offsets, add(stamp.record(c)))
        cuts.setdefault(c.tensor, []).append(c)
    if records or not files:
        files[f"__0_{len(files)}.distcp"] = joined(records)
    if double := cuts.keys() & state.keys():
        raise PlanError(f"{short(min(double))} is given twice")
    return DcpLayout(files, dump(describe(state, places, cuts, flat=flat))[0])


class _Stamp:
    """Lay out records; those of one type and shape differ in no more than the name of their data.

    An archive says a digest of that name as well, but not before the file is sealed.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[DType, tuple[int, ...]], FileLayout] = {}

    def record(self, chunk: OutChunk) -> FileLayout:
        """Lay out the archive of a chunk."""
        form = self._forms.get((chunk.dtype, chunk.sizes))
        if form is None:
            form = layout_tree(TensorRef("", chunk.dtype, chunk.sizes))
            self._forms[chunk.dtype, chunk.sizes] = form
        (placed,) = form.tensors
        return FileLayout(
            form.size, form.fixed, (Placed(chunk.key, placed.dtype, placed.shape, placed.offset),), "bin"
        )


def _tensor(dtype: str, shape: object, *boxes: object) -> Record:
    """Return the ``TensorStorageMetadata`` of a tensor; boxes are each chunk's offsets, and its sizes."""
    encoding = Record(f"{_METADATA}._MEM_FORMAT_ENCODING", (0,), module=_METADATA)  # contiguous
    strided = Record("torch.serialization._get_layout", ("torch.strided",), module="torch.serialization")
    properties = (Global("torch", dtype), strided, False, encoding, False)
    chunks = [Alike(_chunk, (), box) for box in zip(boxes[::2], boxes[1::2], strict=True)]
    return _new(
        _METADATA,
        "TensorStorageMetadata",
        {
            "properties": _new(_METADATA, "TensorProperties", properties),
            "size": _size(shape),
            "chunks": chunks,
        },
    )


def _chunk(offsets: object, sizes: object) -> Record:
    return _new(_METADATA, "ChunkStorageMetadata", {"offsets": _size(offsets), "sizes": _size(sizes)})


def _object() -> Record:
    return _new(_METADATA, "BytesStorageMetadata", {})


def _index(name: str, index: int | None, offsets: object = None) -> Record:
    """Return the ``MetadataIndex`` of a record; that of an object has neither a number nor offsets."""
    at = {} if offsets is None else {"offset": _size(offsets)}
    return _new(_METADATA, "MetadataIndex", {"fqn": name, "index": index, **at})


def _info(file: str, offset: int, length: int) -> Record:
    where = {"relative_path": file, "offset": offset, "length": length}
    return _new(_FILESYSTEM, "_StorageInfo", where)


def describe(
    objects: Mapping[str, object],
    places: Mapping[tuple[str, tuple[int, ...] | None], Place],
    cuts: Mapping[str, Sequence[OutChunk]],
    *,
    flat: bool,
) -> Record:
    """Return the ``Metadata`` that is the content of ``.metadata``.

    Args:
        objects: The ``BytesStorageMetadata`` of each object by name.
        places: Where each record is, by name and offsets of its chunk, None for an object.
        cuts: The chunks of each tensor.
        flat: As of `layout`.
    """
    state = dict(objects)
    for name, parts in cuts.items():
        dtype, shape = parts[0].dtype.name, parts[0].shape
        boxes = [ends for part in parts for ends in (part.offsets, part.sizes)]
        whole = Alike(_tensor, (dtype,), (shape, *boxes)) if len(parts) == 1 else None
        state[name] = whole or _tensor(dtype, shape, *boxes)  # of many chunks these are alike
    index = {(name, c.offsets): i for name, parts in cuts.items() for i, c in enumerate(parts)}
    stored: dict[object, object] = {}
    for (name, offsets), place in places.items():
        key = (name, None) if offsets is None else (name, index[name, offsets], offsets)
        stored[Alike(_index, (), key)] = Alike(_info, (), (place.file, place.offset, place.length))
    meta: dict[str, object] = {"checkpoint_id": None, "save_id": None, "load_id": None, "modules": []}
    root = {
        "state_dict_metadata": state,
        "planner_data": {name: (name,) for name in state} if flat else None,
        "storage_data": stored,
        "storage_meta": _new(_METADATA, "StorageMeta", meta),
        "version": VERSION,
    }
    return _new(_METADATA, "Metadata", root)


def _new(module: str, name: str, state: object) -> Record:
    return Record(f"{module}.{name}", state=state, form="new", module=module)


def _size(values: object) -> Record:
    return Record("torch.Size", (values,), module="torch")
