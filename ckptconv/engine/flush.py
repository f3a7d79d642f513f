"""Start writing to disk while a conversion still computes, so that the last sync has little left to do."""

from __future__ import annotations

import os
import queue
import threading
from contextlib import suppress

__all__ = ["WriteBehind"]

_STEP = 128 << 20  # bytes between two syncs; the disk stays busy, and a sync is seldom waited for


class WriteBehind:
    """Sync a file in the background every so many bytes. Errors are left to the final sync of the file."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unsynced = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wrote(self, path: str, count: int) -> None:
        """Count bytes written to a file."""
        with self._lock:
            self._unsynced += count
            if self._unsynced < _STEP:
                return
            self._unsynced = 0
        # Opened anew, not dup()ed: Linux tells an error in writing back once to each open file, and a shared
        # one would keep it from the final sync. The file may also be closed before its turn comes.
        with suppress(OSError):
            self._jobs.put(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def close(self) -> None:
        """Stop, after the sync that is under way."""
        self._jobs.put(None)
        self._thread.join()
        while not self._jobs.empty():
            if (fd := self._jobs.get()) is not None:
                os.close(fd)

    def _run(self) -> None:
        while (fd := self._jobs.get()) is not None:
            with suppress(OSError):
                os.fdatasync(fd)
            os.close(fd)
