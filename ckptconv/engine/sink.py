"""Define where the bytes of an output file go, and the file on disk they usually go to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from ckptconv.engine.flush import WriteBehind
from ckptconv.engine.output import remove_empty
from ckptconv.places.direct import DirectFile, reserve
from ckptconv.places.files import write_at

__all__ = ["PartFile", "Sink", "create"]


class Sink(Protocol):
    """Take the bytes of one output file, from any thread; the file stays unnamed until the run commits.

    A task writes its bytes in ascending order, without gaps where the container records no sums. The bytes at
    an offset are always the same, however often they are written, but for what `seal` writes last.
    """

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Put ``data`` at byte ``at``; it may be changed by the caller afterwards."""

    def finish(self) -> None:
        """Make what was written durable, and let go of the file."""

    def close(self) -> None:
        """Let go of the file as it is."""

    def abort(self) -> None:
        """Leave nothing behind."""


def create(path: Path, size: int) -> None:
    """Create a file of ``size`` zero bytes; whoever still writes an old one of that name writes elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        reserve(fd, size)
    except OSError as e:
        e.filename = os.fspath(path)
        raise
    finally:
        os.close(fd)


class PartFile:
    """Write into an existing file ``NAME.part`` of the output folder.

    Args:
        folder: The output folder.
        name: The file's name in the plan.
        behind: Starts writing to disk early.
    """

    def __init__(self, folder: Path, name: str, behind: WriteBehind | None = None) -> None:
        self._folder, self.path = folder, folder / (name + ".part")
        self._behind = behind
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._direct = DirectFile(self.path)

    @property
    def size(self) -> int:
        """Bytes the file has."""
        return os.fstat(self._fd).st_size

    def write(self, data: memoryview | bytes, at: int) -> None:
        """Put ``data`` at byte ``at``."""
        view = memoryview(data)
        try:
            first, end = self._direct.write(view, at)
            write_at(self._fd, view[:first], at)
            write_at(self._fd, view[end:], at + end)
        except OSError as e:
            e.filename = os.fspath(self.path)
            raise
        if self._behind is not None and end == first:
            self._behind.wrote(os.fspath(self.path), len(data))

    def finish(self) -> None:
        """Sync the file and close it."""
        try:
            os.fsync(self._fd)
        except OSError as e:
            e.filename = os.fspath(self.path)
            raise
        self.close()

    def abort(self) -> None:
        """Close and remove the file, with the folders that are empty then."""
        self.close()
        self.path.unlink(missing_ok=True)
        remove_empty(self.path.parent, self._folder)

    def close(self) -> None:
        """Close the file as it is; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._direct.close()
