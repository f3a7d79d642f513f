"""Read from and write to local files by position."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from ckptconv.errors import FormatError, InputChangedError
from ckptconv.places.places import ZEROS, forget, is_remote, place
from ckptconv.places.regular import open_descriptor
from ckptconv.records import dataclass

if TYPE_CHECKING:
    from ckptconv.places.remoteread import RemoteReader

__all__ = ["FileStamp", "SourceFiles", "stamp", "write_at"]

# Descriptors kept open: at least so many, at most so many, and a third of what the system allows between
# them, for a verification reads two checkpoints. What is compared on every rank is read from each in turn.
_OPEN_FILES = 128, 4096

# A small tensor cut over many ranks is a few bytes from each file, and the next lies right behind it: short
# reads take a window, which is kept for those that follow. 2,048 windows are 8 MB.
_SHORT, _WINDOW, _WINDOWS = 512, 4096, 2048

# Of runs that lie this near, what is between is read too; the system takes twice so many places at a time.
_NEAR, _RUNS = 16 << 10, 512

# A long read is seldom the last of its file: so much behind it is fetched while it is being written.
_LONG, _AHEAD = 1 << 20, 16 << 20

# Linux caches what one call writes in pieces as large; above 256 KiB, making room for them while others are
# written back took up to three times the system time here (6.18, ext4).
_PIECE = 256 << 10


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Identify the state of a source file: size in bytes and modification time in ns.

    Of a file behind a URL the time is a number made of what its server tells of its version, its ETag mostly.
    """

    path: str
    size: int
    mtime_ns: int


def stamp(path: str | os.PathLike[str]) -> FileStamp:
    """Take the stamp of a file as it is now."""
    st = place(path).stat() if is_remote(path) else os.stat(path)
    return FileStamp(os.fspath(path), st.st_size, st.st_mtime_ns)


@dataclass(slots=True)
class _Open:
    """An open file, how many threads read it, and the byte up to which it is fetched in advance."""

    fd: int
    users: int
    ahead: int = 0


class SourceFiles:
    """Read byte ranges of the source files from any thread, with a bounded number of descriptors.

    Args:
        stamps: The files a plan was made from. A file that has changed since is refused when it is opened,
            and once more by :meth:`check`.
        memory: Most bytes that are read ahead from behind URLs, or held of runs of which many parts are asked
            for.
    """

    def __init__(self, stamps: Iterable[FileStamp], memory: int = 32 << 20) -> None:
        self._stamps = {s.path: s for s in stamps}
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._most_open = _most_open()
        self._windows: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, int, int, int, int], bytearray] = OrderedDict()
        self._holding = threading.Lock()
        self._remote: RemoteReader | None = None
        self.memory = memory

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; nothing may be reading them."""
        with self._lock:
            for entry in self._open.values():
                os.close(entry.fd)
            self._open.clear()
            if self._remote is not None:
                self._remote.close()
                self._remote = None

    def read_into(self, path: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (bytes) from byte ``offset`` of ``path``.

        Raises:
            FormatError: if the file ends early.
            InputChangedError: if the file is not the one the plan was made from.
        """
        want = len(buffer)
        if path == ZEROS:
            buffer[:] = bytes(want)
            return
        if is_remote(path):
            done = self._behind().read(path, offset, buffer)
            if done < want:
                raise self._cut(path, offset + done, want - done)
            return
        if want <= _SHORT:
            index, at = divmod(offset, _WINDOW)
            found = self._window(path, index)[at : at + want]
            if len(found) == want:
                buffer[:] = found
                return
        self._whole(path, offset, want, self._read(path, offset, buffer))

    def hold(
        self, path: str, offset: int, width: int, stride: int | None = None, count: int = 1
    ) -> bytearray | None:
        """Return bytes of a file that are held for all who want parts of them; None if those are too many.

        Args:
            path: The file.
            offset: Where the first run of bytes begins.
            width: Bytes of a run.
            stride: From the beginning of a run to that of the next, if there are several.
            count: How many runs.

        Raises:
            FormatError: if the file ends early.
            InputChangedError: if the file is not the one the plan was made from.
        """
        nbytes, apart = width * count, width if stride is None else stride
        if is_remote(path) or path == ZEROS or nbytes > self.memory:
            return None
        key = (path, offset, width, apart, count)
        with self._holding:
            found = self._held.get(key)
            if found is None:
                while self._held and sum(map(len, self._held.values())) + nbytes > self.memory:
                    self._held.popitem(last=False)
                found = bytearray(nbytes)
                if apart == width:
                    self.read_into(path, offset, memoryview(found))
                else:
                    self.read_rows(path, offset, apart, width, memoryview(found))
                self._held[key] = found
            self._held.move_to_end(key)
            return found

    def read_rows(self, path: str, offset: int, stride: int, width: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with runs of ``width`` bytes, the first from byte ``offset`` on, ``stride`` apart.

        Raises:
            FormatError: if the file ends early.
            InputChangedError: if the file is not the one the plan was made from.
        """
        count, first = len(buffer) // width, 0
        if width < stride <= _NEAR and not is_remote(path) and path != ZEROS:
            # One call for many: what lies between is read into one place over and over.
            between, entry = memoryview(bytearray(stride - width)), self._acquire(path)
            try:
                while count - first > 1:
                    rows = min(_RUNS, count - first)
                    views = [between] * (2 * rows - 1)
                    views[::2] = [buffer[i * width : (i + 1) * width] for i in range(first, first + rows)]
                    done = os.preadv(entry.fd, views, offset + first * stride)
                    if done < (rows - 1) * stride + width:
                        break
                    first += rows
            except OSError as e:
                e.filename = path
                raise
            finally:
                with self._lock:
                    entry.users -= 1
        if width > _SHORT and not is_remote(path) and path != ZEROS:
            first = self._runs(path, offset, stride, width, buffer, first)
        for i in range(first, count):
            self.read_into(path, offset + i * stride, buffer[i * width : (i + 1) * width])

    def _runs(self, path: str, offset: int, stride: int, width: int, buffer: memoryview, first: int) -> int:
        """Read runs one by one from the ``first`` on, until one is short; return how many are read."""
        entry = self._acquire(path)
        try:
            for i in range(first, len(buffer) // width):
                if os.preadv(entry.fd, [buffer[i * width : (i + 1) * width]], offset + i * stride) < width:
                    return i
            return len(buffer) // width
        except OSError as e:
            e.filename = path
            raise
        finally:
            with self._lock:
                entry.users -= 1

    def _whole(self, path: str, offset: int, want: int, done: int) -> None:
        """Refuse a file that ended early."""
        if done < want:
            if (known := self._stamps.get(path)) is not None:
                self._compare(known, os.stat(path))
            raise self._cut(path, offset + done, want - done)

    @staticmethod
    def _cut(path: str, end: int, missing: int) -> FormatError:
        return FormatError(
            f"the file ends at byte {end}, {missing} bytes early",
            where=path,
            hint="the file is cut off; copy it again",
        )

    @property
    def is_remote(self) -> bool:
        """Whether any of the files lies behind a URL."""
        return any(is_remote(path) for path in self._stamps)

    def ask(self, ranges: Iterable[tuple[str, int, int]]) -> Sequence[object]:
        """Ask for bytes of files behind URLs that are soon read, a request for each range.

        Args:
            ranges: The file, first byte and one past the last.

        Returns:
            What `let_go` takes, when all of it has been read.
        """
        return self._behind().ask(ranges)

    def let_go(self, asked: Sequence[object]) -> None:
        """Forget what was asked for."""
        self._behind().let_go(asked)

    def _behind(self) -> RemoteReader:
        """Return what reads from behind URLs."""
        with self._lock:
            if self._remote is None:
                from ckptconv.places.remoteread import RemoteReader

                sizes = {s.path: s.size for s in self._stamps.values() if is_remote(s.path)}
                self._remote = RemoteReader(sizes, self.memory)
            return self._remote

    def _window(self, path: str, index: int) -> bytes:
        """Return the ``index``-th window of a file; shorter where the file ends."""
        key = (path, index)
        found = self._windows.get(key)
        if found is None:
            buffer = bytearray(_WINDOW)
            found = bytes(buffer[: self._read(path, index * _WINDOW, memoryview(buffer))])
            with self._lock:
                self._windows[key] = found
                if len(self._windows) > _WINDOWS:
                    self._windows.popitem(last=False)
        return found

    def _read(self, path: str, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` as far as the file goes; return how far."""
        entry = self._acquire(path)
        try:
            if len(buffer) >= _LONG:
                _fetch(entry, offset + len(buffer))
            done = 0
            while done < len(buffer):
                n = os.preadv(entry.fd, [buffer[done:]], offset + done)
                if n == 0:
                    break
                done += n
            return done
        except OSError as e:
            e.filename = path
            raise
        finally:
            with self._lock:
                entry.users -= 1

    def check(self) -> None:
        """Check that no source file has changed since its stamp was taken.

        Raises:
            InputChangedError: if one has.
        """
        forget()
        for known in self._stamps.values():
            try:
                now = place(known.path).stat() if is_remote(known.path) else os.stat(known.path)
            except FileNotFoundError as e:
                raise _gone(known.path) from e
            self._compare(known, now)

    def _acquire(self, path: str) -> _Open:
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                entry = _Open(self._open_checked(path), 1)
                self._open[path] = entry
                if len(self._open) > self._most_open:
                    self._evict(self._most_open - self._most_open // 4)
            else:
                self._open.move_to_end(path)
                entry.users += 1
            return entry

    def _open_checked(self, path: str) -> int:
        try:
            fd = open_descriptor(path)
        except FileNotFoundError as e:
            raise _gone(path) from e
        except OSError as e:
            if e.errno not in (errno.EMFILE, errno.ENFILE) or not self._evict(len(self._open) // 2):
                raise
            return self._open_checked(path)
        try:
            if (known := self._stamps.get(path)) is not None:
                self._compare(known, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _evict(self, keep: int) -> int:
        """Close files nobody reads, the longest unused first, until ``keep`` are open; return how many."""
        idle = [p for p, e in self._open.items() if e.users == 0][: max(0, len(self._open) - keep)]
        for path in idle:
            os.close(self._open.pop(path).fd)
        return len(idle)

    @staticmethod
    def _compare(known: FileStamp, now: os.stat_result) -> None:
        if (now.st_size, now.st_mtime_ns) != (known.size, known.mtime_ns):
            raise InputChangedError(
                f"the file changed while it was converted ({known.size} bytes then, {now.st_size} now)",
                where=known.path,
                hint="wait until training has finished writing it, then convert again",
            )


def _most_open() -> int:
    """Return how many files may be open at a time."""
    least, most = _OPEN_FILES
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if allowed == resource.RLIM_INFINITY else min(most, max(least, allowed // 3))


def _fetch(entry: _Open, end: int) -> None:
    """Have the system bring what lies behind byte ``end`` into its cache, without waiting for it."""
    start = entry.ahead if end <= entry.ahead <= end + _AHEAD else end
    if hasattr(os, "posix_fadvise") and end + _AHEAD - start >= _AHEAD // 4:
        entry.ahead = end + _AHEAD
        with suppress(OSError):
            os.posix_fadvise(entry.fd, start, entry.ahead - start, os.POSIX_FADV_WILLNEED)


def _gone(path: str) -> InputChangedError:
    return InputChangedError(
        "the file was removed or renamed while it was converted",
        where=path,
        hint="keep the checkpoint in place until the conversion is done",
    )


def write_at(fd: int, buffer: memoryview | bytes, offset: int) -> None:
    """Write all of ``buffer`` at byte ``offset`` of an open file."""
    view = memoryview(buffer)
    while len(view):
        n = os.pwrite(fd, view[:_PIECE], offset)
        view, offset = view[n:], offset + n
