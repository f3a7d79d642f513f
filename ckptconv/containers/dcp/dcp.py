"""Read the metadata of a PyTorch distributed checkpoint (DCP): which chunk of which tensor is in which bytes.

A folder holds ``.metadata``, a pickle, and ``*.distcp`` files of records, each a container of ``torch.save``
of its own (torch 2.13, ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py``). Megatron-core's
``torch_dist`` is the same container with other names in it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.dcp import METADATA
from ckptconv.containers.dcp.dcprecord import RecordReader, Wanted
from ckptconv.containers.dcp.metadata import Chunk, DcpTensor, Entry, read_metadata
from ckptconv.containers.tarindex import Member
from ckptconv.containers.torch.picklevm import short
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.places import place
from ckptconv.places.regular import open_binary
from ckptconv.places.window import Window
from ckptconv.records import dataclass

__all__ = ["Chunk", "DcpFolder", "DcpTensor", "Entry", "open_dcp", "open_dcp_inside"]

_MOST: Final = 1 << 29


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
        found: dict[str, list[FileTensor | None]] = {}
        by_file: defaultdict[str, list[Wanted]] = defaultdict(list)
        for name in names:
            tensor = self.tensors[name]
            if tensor.odd is not None:
                raise FormatError(
                    f"{name}: a tensor of the unknown type {short(tensor.odd)}", where=self.folder / METADATA
                )
            _check_volume(name, tensor, self.folder)
            into = found[name] = [None] * len(tensor.chunks)
            dtype = tensor.dtype
            for i, (_, sizes, entry) in enumerate(tensor.chunks):
                if entry is not None:
                    file, offset, length = entry
                    by_file[file].append((offset, length, name, dtype, sizes, into, i))
        files = sorted(by_file.items())
        for file, places in files:
            places.sort(key=itemgetter(0))
            _check_apart(places, self.folder / file)
        reader = RecordReader(self.folder)
        for file, places in files:
            reader.locate(file, places)
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
    told = read_metadata(path)
    return DcpFolder(base, told.version, told.tensors, told.objects, told.paths)


def open_dcp_inside(archive: Path, members: Mapping[str, Member], folder: str) -> DcpFolder:
    """Read ``.metadata`` of a folder in a tar archive; records are located in the archive itself.

    Args:
        archive: The archive.
        members: Its files.
        folder: What the names of the checkpoint's files begin with.

    Raises:
        FormatError: as `open_dcp`, or if a file of records is not in the archive.
    """
    at = members.get(folder + METADATA)
    if at is None:
        raise FormatError(f"no {folder}{METADATA} in the archive", where=archive, hint="copy it again")
    if at.size > _MOST:
        raise FormatError(f"{folder}{METADATA} has {at.size:,} bytes", where=archive, hint="copy it again")
    with open_binary(archive) as file:
        raw = Window(file, str(archive), at.offset, at.size).read_at(0, at.size)
    told = read_metadata(archive, raw)

    def here(entry: Entry) -> Entry:
        member = members.get(folder + entry.file)
        if member is None or entry.offset + entry.length > member.size:
            raise FormatError(
                f"{folder}{entry.file} is missing or cut off", where=archive, hint="copy it again"
            )
        return Entry(archive.name, member.offset + entry.offset, entry.length)

    tensors = {
        name: replace(
            tensor,
            chunks=tuple(
                [c._replace(entry=None if c.entry is None else here(c.entry)) for c in tensor.chunks]
            ),
        )
        for name, tensor in told.tensors.items()
    }
    objects = {name: here(entry) for name, entry in told.objects.items()}
    return DcpFolder(archive.parent, told.version, tensors, objects, told.paths)


def _check_apart(places: list[Wanted], path: Path) -> None:
    """Refuse records of a file, in the order they lie in it, that share bytes."""
    ends = [place[0] + place[1] for place in places]
    if any(place[0] < end for place, end in zip(places[1:], ends, strict=False)):
        one, two = next((a, b) for a, b in pairwise(places) if b[0] < a[0] + a[1])
        raise PlanError(
            f"the record of {two[2]} at byte {two[0]:,} begins inside that of {one[2]}", where=path
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
