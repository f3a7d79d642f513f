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
from types import TracebackType
from typing import BinaryIO, Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.torchbin import ALIGN
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.containers.torch.torchtensors import odd_tensor
from ckptconv.dtypes import DType
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.regular import open_binary
from ckptconv.records import dataclass

__all__ = ["RecordReader"]

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


class RecordReader:
    """Open records of the files in a folder, best in the order they lie in them.

    Args:
        folder: What the files' names are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = ""
        self._path = ""
        self._open: BinaryIO | None = None
        self._size = 0
        self._ahead = b""
        self._ahead_at = 0
        self._templates: dict[tuple[int, DType, tuple[int, ...]], _Template] = {}

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def tensor(
        self, name: str, file: str, offset: int, length: int, dtype: DType, shape: tuple[int, ...]
    ) -> FileTensor:
        """Locate the tensor of a record.

        Args:
            name: The tensor's name, for errors.
            file: Name of the file.
            offset: Where the record begins.
            length: Its length in bytes.
            dtype: Element type it must have.
            shape: Shape it must have.

        Raises:
            PlanError: if there is no such file, or the record is of another type or shape.
            FormatError: if the record is damaged, or not one plain tensor.
        """
        self._switch(file, name)
        if offset + length > self._size:
            raise FormatError(
                f"{name}: its record is bytes {offset:,} to {offset + length:,}; the file has {self._size:,}",
                where=self._path,
                hint="the file is cut off, or of another save; copy it again",
            )
        template = self._templates.get((length, dtype, shape))
        if template is not None and self._matches(template, offset, length):
            t = template.tensor
            begin, size = t.storage
            return FileTensor(
                t.dtype, t.shape, t.stride, self._path, offset + t.offset, (offset + begin, size)
            )
        try:
            root = open_torch(self._path, offset=offset, length=length).root
        except FormatError as e:
            raise FormatError(
                f"{name}: the record at byte {offset:,}: {e.message}", where=self._path, hint=e.hint
            ) from e
        if type(root) is not FileTensor:
            why = odd_tensor(root) or "an object"
            raise FormatError(
                f"{name}: the record at byte {offset:,} is no plain tensor: {why}",
                where=self._path,
                hint="load the checkpoint with torch, and save dense tensors",
            )
        if root.dtype != dtype or root.shape != shape:
            raise PlanError(
                f"{name}: the record at byte {offset:,} holds {root.dtype}{list(root.shape)}; the metadata "
                f"says {dtype}{list(shape)}",
                where=self._path,
            )
        self._learn(root, offset, length)
        return root

    def _switch(self, file: str, name: str) -> None:
        """Open a file, unless it is the one that is open."""
        if file == self._file:
            return
        path = self._folder / file
        try:
            opened = open_binary(path)
        except FileNotFoundError as e:
            raise PlanError(
                f"the file {file} is missing; {name} lies in it",
                where=self._folder,
                hint="copy the *.distcp files of every rank",
            ) from e
        self._close()
        self._open, self._file, self._path = opened, file, str(path)
        self._size = opened.seek(0, os.SEEK_END)
        self._ahead = b""

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()

    def _read(self, count: int, offset: int) -> bytes:
        begin = offset - self._ahead_at
        if begin >= 0 and begin + count <= len(self._ahead):
            return self._ahead[begin : begin + count]
        assert self._open is not None
        self._open.seek(offset)
        return self._open.read(count)

    def _matches(self, template: _Template, offset: int, length: int) -> bool:
        head = template.head
        if self._read(len(head), offset) != head:
            return False
        # What follows a record is most often one like it, so its head is read with this one's end.
        tail, at = length - template.start, offset + template.start
        if at - self._ahead_at + tail > len(self._ahead) or at < self._ahead_at:
            self._ahead, self._ahead_at = self._read(tail + len(head) + ALIGN, at), at
        return template.tail.fullmatch(self._read(tail, at)) is not None

    def _learn(self, tensor: FileTensor, offset: int, length: int) -> None:
        """Keep the layout of a record, if all that opening it read lies before its data and after."""
        begin = tensor.storage[0] - offset
        edge = self._read(min(length, _MAX_EDGE), offset + length - min(length, _MAX_EDGE))
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
        self._templates[length, tensor.dtype, tensor.shape] = _Template(
            self._read(begin, offset),
            start,
            _pattern(tail, sums),
            replace(
                tensor, offset=tensor.offset - offset, storage=(tensor.storage[0] - offset, tensor.storage[1])
            ),
        )


def _pattern(tail: bytes, sums: Sequence[int]) -> re.Pattern[bytes]:
    """Return what matches a directory with these checksums or others."""
    parts, at = [], 0
    for checksum in sorted(sums):
        parts.append(re.escape(tail[at:checksum]))
        at = checksum + 4
    return re.compile(b"....".join([*parts, re.escape(tail[at:])]), re.DOTALL)
