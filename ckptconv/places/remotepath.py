"""Look at files behind URLs as `pathlib` looks at those on disk."""

from __future__ import annotations

import io
import os
import re
import stat as statlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from isal.isal_zlib import crc32

from ckptconv.places import remote

__all__ = ["RemoteFile", "RemotePath", "version_of"]

_HEAD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])")
_Base = type(Path())

# A small file comes whole; a header lies in one block, and reading on makes blocks larger.
_WHOLE, _BLOCK, _MOST, _FLIGHTS = 512 << 10, 128 << 10, 8 << 20, 16


def version_of(entry: remote.Entry) -> int:
    """Return a number that changes with an object: made of its ETag, its generation or its time."""
    for key in ("ETag", "etag", "generation", "blob_id", "oid", "LastModified", "mtime", "created"):
        if entry.get(key):
            return crc32(str(entry[key]).encode())
    return 0


class RemotePath(_Base):  # type: ignore[misc, valid-type]
    """A path behind a URL, such as ``s3://bucket/run``; what it is made of is that of a `pathlib.Path`.

    Folders are listed once and remembered until `remote.forget`. Nothing here writes.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return _HEAD.sub(r"\1://", super().__str__(), count=1)

    def __fspath__(self) -> str:
        return str(self)

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> RemotePath:
        return self

    def expanduser(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return the path without ``..``; objects have no links."""
        parts: list[str] = []
        for part in self.parts:
            if part != "..":
                parts.append(part)
            elif len(parts) > 1:
                parts.pop()
        return type(self)(*parts)

    def _entry(self) -> remote.Entry | None:
        parts = len(self.parts)
        if parts < 2 or self.root:
            return None
        parent = str(self.parent) if parts > 2 else None
        return remote.entry_of(str(self), parent)

    def exists(self, **kwargs: Any) -> bool:
        return self._entry() is not None

    def is_file(self, **kwargs: Any) -> bool:
        entry = self._entry()
        return entry is not None and entry["type"] == "file"

    def is_dir(self, **kwargs: Any) -> bool:
        entry = self._entry()
        return entry is not None and entry["type"] == "directory"

    def is_symlink(self) -> bool:
        return False

    def entry(self) -> remote.Entry:
        """Return what the file system tells of it.

        Raises:
            FileNotFoundError: if there is nothing.
        """
        entry = self._entry()
        if entry is None:
            raise FileNotFoundError(2, "No such file or folder", str(self))
        return entry

    def stat(self, **kwargs: Any) -> os.stat_result:
        """Return size and kind; the time is a number made of the object's version."""
        entry = self.entry()
        mode = statlib.S_IFREG if entry["type"] == "file" else statlib.S_IFDIR
        fields = (mode, 0, 0, 1, 0, 0, remote.size_of(str(self), entry), 0, 0, 0)
        return os.stat_result(fields, {"st_mtime_ns": version_of(entry)})

    def lstat(self) -> os.stat_result:
        return self.stat()

    def iterdir(self) -> Iterator[RemotePath]:
        found = remote.listing(str(self)) if len(self.parts) > 1 else None
        if found is None:
            raise FileNotFoundError(2, "No such folder", str(self))
        return (self / name for name in found)

    def glob(self, pattern: str, **kwargs: Any) -> Iterator[RemotePath]:
        """Yield what matches; ``**`` is not known."""
        first, _, rest = pattern.partition("/")
        if not self.is_dir():
            return
        for path in [p for p in self.iterdir() if fnmatchcase(p.name, first)]:
            if rest:
                yield from path.glob(rest)
            else:
                yield path

    def rglob(self, pattern: str, **kwargs: Any) -> Iterator[RemotePath]:
        for path in list(self.iterdir()):
            if fnmatchcase(path.name, pattern):
                yield path
            if path.is_dir():
                yield from path.rglob(pattern)

    def read_bytes(self) -> bytes:
        size = remote.size_of(str(self), self.entry())
        return remote.fetch(str(self), 0, size) if size else b""

    def read_text(self, encoding: str | None = None, errors: str | None = None, **kwargs: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """Open for reading, in binary mode alone."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self} cannot be opened in mode {mode}")
        return RemoteFile(str(self), remote.size_of(str(self), self.entry()))

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise io.UnsupportedOperation(f"{self} is not on disk")

    mkdir = unlink = rename = replace = rmdir = touch = chmod = write_bytes = write_text = _refuse
    symlink_to = hardlink_to = readlink = owner = group = samefile = _refuse


class RemoteFile(io.RawIOBase):
    """Read an object at random positions by blocks: few requests for what lies close together.

    Blocks are remembered with the listings, for whoever opens the object again.

    Args:
        url: The object.
        size: Its length in bytes.
    """

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._at = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        end = self._size if count is None or count < 0 else min(self._size, self._at + count)
        pieces = []
        while self._at < end:
            first, block = self._block(self._at, end - self._at)
            piece = block[self._at - first : end - first]
            pieces.append(piece)
            self._at += len(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask for short ranges, several at a time; those that lie in what is held or near others are left."""
        held = remote.BLOCKS.of(self._url).items()
        far: list[tuple[int, int]] = []
        for lo, hi in sorted(ranges):
            if self._size <= _WHOLE or any(at <= lo and hi <= at + len(block) for at, block in held):
                continue
            if far and hi - far[-1][0] <= _BLOCK:
                far[-1] = (far[-1][0], hi)
            else:
                far.append((lo, hi))
        with ThreadPoolExecutor(_FLIGHTS) as pool:
            for (lo, _), data in zip(far, pool.map(lambda r: remote.fetch(self._url, *r), far), strict=True):
                remote.BLOCKS.add(self._url, lo, data)

    def _block(self, at: int, count: int) -> tuple[int, bytes]:
        """Return a block that holds byte ``at``, and where it begins."""
        held = remote.BLOCKS.of(self._url)
        for first, block in held.items():
            if first <= at < first + len(block):
                return first, block
        before = next((len(b) for f, b in held.items() if f + len(b) == at), 0)
        length = max(count, min(2 * before, _MOST), _BLOCK)
        if self._size <= _WHOLE:
            at, length = 0, self._size
        elif before == 0 and at + length > self._size:  # the directory of an archive lies at its end
            at = max(0, min(at, self._size - length))
        data = remote.fetch(self._url, at, min(at + length, self._size))
        if not data:
            raise OSError(5, "the object has become shorter", self._url)
        remote.BLOCKS.add(self._url, at, data)
        return at, data
