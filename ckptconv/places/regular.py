"""Open files of a checkpoint: regular ones only, bounded where they are read whole, links not followed out.

Reading a FIFO waits for ever, a device has no end, and a link may lead to what its maker could not read but
the user can. So every file that is read is opened here.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat as statlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from ckptconv.errors import FormatError
from ckptconv.places.places import is_remote, place

__all__ = [
    "MOST",
    "is_within",
    "open_binary",
    "open_descriptor",
    "read_bytes",
    "read_head",
    "read_text",
    "reading_at",
]

MOST: Final = 1 << 30
"""Bytes of a file that is read whole, at most: tokenizers are the largest, of 35 MB."""

_KINDS = {
    statlib.S_IFDIR: "a folder",
    statlib.S_IFIFO: "a FIFO",
    statlib.S_IFSOCK: "a socket",
    statlib.S_IFCHR: "a device",
    statlib.S_IFBLK: "a device",
}
# huggingface_hub 1.0, file_download.py: models--ORG--NAME/snapshots/REVISION/FILE is a link to blobs/ETAG.
_BLOB = re.compile(r".*/(?:models|datasets|spaces)--[^/]+/blobs/[0-9a-f]{40,64}")


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """Open a regular file on disk for reading; return its descriptor.

    Raises:
        FormatError: if it is a folder, a FIFO, a socket or a device.
        OSError: if it cannot be opened.
    """
    _refuse_odd(os.stat(path).st_mode, path)  # opening a device may do something, opening a socket fails
    try:
        # Another file may have got the name since: O_NONBLOCK, or opening a FIFO would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        if e.errno == errno.ENXIO:
            raise FormatError("a FIFO, a socket or a device, where a file should be", where=path) from e
        raise
    try:
        _refuse_odd(os.fstat(fd).st_mode, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_odd(mode: int, path: str | os.PathLike[str]) -> None:
    if not statlib.S_ISREG(mode):
        kind = _KINDS.get(statlib.S_IFMT(mode), "something else")
        hint = "name a file in it" if statlib.S_ISDIR(mode) else "copy the checkpoint again, as plain files"
        raise FormatError(f"{kind}, where a file should be", where=path, hint=hint)


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for short reads at random positions: unbuffered on disk, in blocks from behind a URL.

    Raises:
        FormatError: if it is no regular file.
    """
    if is_remote(path):
        return cast(BinaryIO, place(path).open("rb"))
    return cast(BinaryIO, RegularFile(open_descriptor(path), os.fspath(path)))


class RegularFile(io.RawIOBase):
    """Read a file unbuffered: all that is asked for, fewer bytes only at its end.

    One call of the system may give less (network file systems do), and its errors name no file.

    Args:
        fd: The open file; it is closed with this one.
        path: Its name, for errors.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd, self._path, self._at = fd, path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, os.fstat(self._fd).st_size if whence == io.SEEK_END else 0)[whence]
        if base + offset < 0:
            raise ValueError("before the file's first byte")
        self._at = base + offset
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        if count is None or count < 0:
            count = max(0, os.fstat(self._fd).st_size - self._at)
        data = self._read(count)
        while data and len(data) < count and (more := self._read(count - len(data))):
            data += more
        return data

    def _read(self, count: int) -> bytes:
        try:
            data = os.pread(self._fd, count, self._at)
        except OSError as e:
            e.filename = e.filename or self._path
            raise
        self._at += len(data)
        return data

    def read_at(self, count: int, offset: int) -> bytes:
        """Read from a position; where the next `read` begins is not told."""
        self._at = offset
        data = self._read(count)
        return data if len(data) == count or not data else data + self.read(count - len(data))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


def reading_at(file: BinaryIO) -> Callable[[int, int], bytes]:
    """Return what reads so many bytes of a file from a position on, fewer only at its end."""
    if isinstance(file, RegularFile):
        return file.read_at

    def read_at(count: int, offset: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    return read_at


def read_bytes(path: str | os.PathLike[str], *, most: int = MOST, within: Path | None = None) -> bytes:
    """Return the content of a file.

    Args:
        path: The file.
        most: The most bytes it may have.
        within: The folder that a link must not lead out of, except into the ``blobs`` of a hub's cache.

    Raises:
        FormatError: if it is larger, no regular file, or a link that leads elsewhere.
        OSError: if it cannot be read.
    """
    if is_remote(path):
        found = place(path)
        if (size := found.stat().st_size) > most:
            raise _large(path, size, most)
        return found.read_bytes()
    if within is not None and not is_within(path, within):
        raise FormatError(
            f"a link that leads out of its folder, to {os.path.realpath(path)}",
            where=path,
            hint="put a copy of the file in its place, or name the folder it is in with a flag of its own",
        )
    with RegularFile(open_descriptor(path), os.fspath(path)) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise _large(path, size, most)
        pieces, held = [], 0
        while piece := file.read(max(size - held, 0) + 1):  # one byte more than it says: /proc says 0
            pieces.append(piece)
            held += len(piece)
            if held > most:
                raise _large(path, held, most)
        return b"".join(pieces)


def read_head(path: str | os.PathLike[str], count: int) -> bytes:
    """Return the first bytes of a file, all of it if it is shorter.

    Raises:
        FormatError: if it is no regular file.
        OSError: if it cannot be read.
    """
    with open_binary(path) as file:
        return file.read(count) or b""


def _large(path: str | os.PathLike[str], size: int, most: int) -> FormatError:
    return FormatError(f"{size:,} bytes, where at most {most:,} make sense", where=path)


def read_text(
    path: str | os.PathLike[str],
    *,
    most: int = 64 << 20,
    within: Path | None = None,
    hint: str = "save it as UTF-8",
) -> str:
    """Return the content of a text file.

    Args:
        path: The file.
        most: The most bytes it may have.
        within: As in `read_bytes`.
        hint: What to do if it is no UTF-8.

    Raises:
        FormatError: if it is no UTF-8, or as `read_bytes` does.
        OSError: if it cannot be read.
    """
    try:
        return read_bytes(path, most=most, within=within).decode()
    except UnicodeDecodeError as e:
        byte = e.object[e.start]
        raise FormatError(f"not UTF-8: byte {byte:#04x} at {e.start:,}", where=path, hint=hint) from e


def is_within(path: str | os.PathLike[str], folder: Path) -> bool:
    """Whether a file lies below a folder, all links followed, or in the ``blobs`` of a hub's cache."""
    if is_remote(path):
        return True
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep) or bool(_BLOB.fullmatch(real))
