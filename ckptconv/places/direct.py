"""Write to a local file past the page cache."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

__all__ = ["ALIGNMENT", "MEMORY_ALIGNMENT", "DirectFile", "reserve"]

ALIGNMENT = 4096
"""What offset and length of a direct write must be a multiple of, in bytes."""

MEMORY_ALIGNMENT = 512
"""What the address of its memory must be a multiple of."""

# What is shorter goes through the page cache: a direct write is waited for.
_SHORTEST = 64 << 10

_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP)


def reserve(fd: int, size: int) -> None:
    """Give an empty file ``size`` zero bytes, and disk space for them where the system can.

    Direct writes into a hole exclude one another on ext4; into reserved space they do not.

    Raises:
        OSError: if the disk is full, or the file would exceed a limit.
    """
    if size and hasattr(os, "posix_fallocate") and _on_disk(fd):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as e:
            if e.errno not in _UNSUPPORTED:
                raise
    os.ftruncate(fd, size)


class DirectFile:
    """Write the whole blocks of a file directly, if it lies on a disk of this machine.

    Copying through the page cache takes several times as much of the processor, and while the cache is being
    written back, several times as long. Network and layered file systems are left to their own caches.

    Args:
        path: An existing file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = -1
        if hasattr(os, "O_DIRECT"):
            with suppress(OSError):
                self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
            if self._fd >= 0 and not _on_disk(self._fd):
                self.close()

    @property
    def works(self) -> bool:
        """Whether writes go past the page cache."""
        return self._fd >= 0

    def write(self, data: memoryview, at: int) -> tuple[int, int]:
        """Write the blocks that lie wholly in ``data``, which belongs at byte ``at``.

        Returns:
            Which bytes of ``data`` were written, as ``(first, end)``; none if ``end`` is ``first``. The
            others are the caller's to write.

        Raises:
            OSError: if writing fails.
        """
        first, end = -at % ALIGNMENT, len(data) - (at + len(data)) % ALIGNMENT
        done = first
        if self._fd < 0 or end - first < _SHORTEST:
            return first, first
        while done < end:
            try:
                count = os.pwrite(self._fd, data[done:end], at + done)
            except OSError as e:
                if e.errno not in _UNSUPPORTED:
                    raise
                break
            done += count
            if (
                count % ALIGNMENT
            ):  # the disk is nearly full, or a limit near: the other way tells what is wrong
                break
        return first, done

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _on_disk(fd: int) -> bool:
    """Whether a file lies on a block device: not on a network, in memory, or on a layer over others."""
    return os.major(os.fstat(fd).st_dev) != 0
