"""Locate the tensor in each record of a distributed checkpoint's files with few reads.

A record is a zip archive of ``torch.save``. Records of equal length and type have the same layout, so one is
opened in full, and those after it are compared with it: all bytes before the tensor's data (the pickle is
among them) and the archive's directory but for its checksums. What opening reads is nothing else, so equal
bytes are an equal result; a record that differs in any is opened in full.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.torchbin import ALIGN
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.containers.torch.torchtensors import odd_tensor
from ckptconv.dtypes import DType
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.regular import open_binary, reading_at
from ckptconv.records import dataclass

__all__ = ["RecordReader", "Wanted"]

_END: Final = Struct("<4s4H2LH")
_CENTRAL: Final = Struct("<4s6H3L5H2L")
_CRC: Final = 16  # position of the checksum in a directory entry
_MAX_TEMPLATES: Final = 256
_MAX_EDGE: Final = 1 << 16
_PICKLE: Final = b"/data.pkl"


@dataclass(frozen=True, slots=True)
class _Template:
    """What a record of known layout holds before and after its data.

    Attributes:
        head: All bytes before the data.
        start: Where the directory begins.
        tail: Matches the bytes from there on, whatever the checksums are.
        tensor: The tensor, as if the record began at byte 0.
    """

    head: bytes
    start: int
    tail: re.Pattern[bytes]
    tensor: FileTensor


Wanted = tuple[int, int, str, DType, tuple[int, ...], list[FileTensor | None], int]
"""A record: offset and length; the name for errors; type and shape it must have; a list, and where in it what
is located goes. There are hundreds of thousands."""


class RecordReader:
    """Open records of the files in a folder.

    Args:
        folder: What the files' names are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._templates: dict[tuple[int, str, tuple[int, ...]], _Template] = {}

    def locate(self, file: str, wanted: Sequence[Wanted]) -> None:
        """Locate the tensors of records of one file; each is put into its list.

        Args:
            file: Name of the file.
            wanted: The records, best in the order they lie in it.

        Raises:
            PlanError: if there is no such file, or a record is of another type or shape.
            FormatError: if a record is damaged, or not one plain tensor.
        """
        path = self._folder / file
        try:
            opened = open_binary(path)
        except FileNotFoundError as e:
            raise PlanError(
                f"the file {file} is missing; {wanted[0][2]} lies in it",
                where=self._folder,
                hint="copy the *.distcp files of every rank",
            ) from e
        with opened:
            self._locate(_Ahead(opened), str(path), wanted)

    def _locate(self, file: _Ahead, path: str, wanted: Sequence[Wanted]) -> None:
        templates = self._templates
        for record in wanted:
            offset, length, name, dtype, shape, into, i = record
            if offset + length > file.size:
                raise FormatError(
                    f"{name}: its record is bytes {offset:,} to {offset + length:,}; the file has "
                    f"{file.size:,}",
                    where=path,
                    hint="the file is cut off, or of another save; copy it again",
                )
            known = templates.get((length, dtype.name, shape))
            if known is not None and file.matches(known.head, known.start, known.tail, offset, length):
                t = known.tensor
                begin, size = t.storage
                into[i] = FileTensor(
                    t.dtype, shape, t.stride, path, offset + t.offset, (offset + begin, size)
                )
            else:
                root = into[i] = _opened(path, record)
                self._learn(root, file, offset, length)

    def _learn(self, tensor: FileTensor, file: _Ahead, offset: int, length: int) -> None:
        """Keep the layout of a record, if all that opening it read lies before its data and after."""
        begin = tensor.storage[0] - offset
        edge = file.read(min(length, _MAX_EDGE), offset + length - min(length, _MAX_EDGE))
        end = len(edge) - _END.size
        if begin > _MAX_EDGE or end < 0 or edge[end : end + 4] != b"PK\5\6":
            return
        directory = length - len(edge)  # position in the record of edge[0]
        *_, count, _, start, _ = _END.unpack_from(edge, end)
        at = start - directory
        if at < 0:
            return
        tail, sums, order = edge[at:], [], []
        at = 0
        for _ in range(count):
            if at + _CENTRAL.size > len(tail) or tail[at : at + 4] != b"PK\1\2":
                return
            fields = _CENTRAL.unpack_from(tail, at)
            name = tail[at + _CENTRAL.size : at + _CENTRAL.size + fields[10]]
            sums.append(at + _CRC)
            order.append((name, fields[16]))
            at += _CENTRAL.size + sum(fields[10:13])
        read = [place for name, place in order if name.endswith((_PICKLE, b"/byteorder"))]
        if not read or max(read) >= begin:
            return
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[length, tensor.dtype.name, tensor.shape] = _Template(
            file.read(begin, offset),
            start,
            _pattern(tail, sums),
            replace(
                tensor, offset=tensor.offset - offset, storage=(tensor.storage[0] - offset, tensor.storage[1])
            ),
        )


class _Ahead:
    """Read a file where records end and begin: most often what follows one is another like it.

    Attributes:
        size: Bytes of the file.
        read: Reads bytes: how many, and from where.
    """

    __slots__ = ("_at", "_held", "read", "size")

    def __init__(self, file: BinaryIO) -> None:
        self.read = reading_at(file)
        self._held = b""
        self._at = 0
        self.size = file.seek(0, os.SEEK_END)

    def matches(self, head: bytes, start: int, tail: re.Pattern[bytes], offset: int, length: int) -> bool:
        """Whether the record at ``offset`` begins with ``head`` and has a directory like ``tail``."""
        begin = offset - self._at
        if not (begin >= 0 and self._held.startswith(head, begin)) and self.read(len(head), offset) != head:
            return False
        begin = offset + start - self._at
        end = begin + length - start
        if begin < 0 or end > len(self._held):  # with the head of the next
            self._at = offset + start
            self._held = self.read(length - start + len(head) + ALIGN, self._at)
            begin, end = 0, length - start
        return tail.fullmatch(self._held, begin, end) is not None


def _opened(path: str, record: Wanted) -> FileTensor:
    """Open a record in full."""
    offset, length, name, dtype, shape, *_ = record
    try:
        root = open_torch(path, offset=offset, length=length).root
    except FormatError as e:
        raise FormatError(
            f"{name}: the record at byte {offset:,}: {e.message}", where=path, hint=e.hint
        ) from e
    if type(root) is not FileTensor:
        why = odd_tensor(root) or "an object"
        raise FormatError(
            f"{name}: the record at byte {offset:,} is no plain tensor: {why}",
            where=path,
            hint="load the checkpoint with torch, and save dense tensors",
        )
    if root.dtype != dtype or root.shape != shape:
        raise PlanError(
            f"{name}: the record at byte {offset:,} holds {root.dtype}{list(root.shape)}; the metadata "
            f"says {dtype}{list(shape)}",
            where=path,
        )
    return root


def _pattern(tail: bytes, sums: Sequence[int]) -> re.Pattern[bytes]:
    """Return what matches a directory with these checksums or others."""
    parts, at = [], 0
    for checksum in sorted(sums):
        parts.append(re.escape(tail[at:checksum]))
        at = checksum + 4
    return re.compile(b"....".join([*parts, re.escape(tail[at:])]), re.DOTALL)
