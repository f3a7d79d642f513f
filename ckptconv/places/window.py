"""Read a byte range of an open file as if it were a file."""

from __future__ import annotations

from collections.abc import Iterable
from os import SEEK_END
from typing import BinaryIO

from ckptconv.errors import FormatError

__all__ = ["Window"]


class Window:
    """Show ``length`` bytes of ``file`` from ``start`` on (the rest of it by default).

    Attributes:
        path: The file's name, for errors.
        start: Where the window begins in the file.
        size: Its length in bytes.

    Raises:
        FormatError: if the file ends before the window does.
    """

    __slots__ = ("_at", "_file", "path", "size", "start")

    def __init__(self, file: BinaryIO, path: str, start: int = 0, length: int | None = None) -> None:
        end = file.seek(0, SEEK_END)
        if length is None:
            length = end - start
        if start < 0 or length < 0 or start + length > end:
            raise FormatError(
                f"bytes {start:,} to {start + length:,} were expected; the file has {end:,}",
                where=path,
                hint="copy the file again",
            )
        self._file = file
        self._at = 0
        self.path = path
        self.start = start
        self.size = length

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say what is read next: far away, short reads are asked for at the same time."""
        if (expect := getattr(self._file, "expect", None)) is not None:
            expect([(self.start + lo, self.start + hi) for lo, hi in ranges])

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def read(self, length: int) -> bytes:
        """Return up to ``length`` bytes, fewer only at the window's end."""
        length = min(length, self.size - self._at)
        if length <= 0:
            return b""
        self._file.seek(self.start + self._at)
        data = self._file.read(length)
        while len(data) < length and (rest := self._file.read(length - len(data))):
            data += rest
        self._at += len(data)
        return data

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes at ``offset``.

        Raises:
            FormatError: if the window ends first.
        """
        self.seek(offset)
        data = self.read(length) if offset >= 0 else b""
        if len(data) != length:
            raise FormatError(
                f"the file ends early: {length:,} bytes at {offset:,} of {self.size:,}",
                where=self.path,
                hint="copy the file again",
            )
        return data
