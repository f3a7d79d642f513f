"""Run a program as a whole process and say what it took: time, processor, memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Failed", "Usage", "drop_caches", "measure"]

_SAMPLE_SECONDS = 0.01
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class Failed(Exception):
    """A measured program ended with an error."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a program took.

    Attributes:
        wall: Seconds from start to exit.
        cpu: Seconds of processor time, user and system, over all cores.
        rss: Peak resident memory in bytes; pages of mapped files count.
        anon: Peak of anonymous memory in bytes, sampled every 10 ms; 0 where the system does not tell.
    """

    wall: float
    cpu: float
    rss: int
    anon: int

    def then(self, other: Usage) -> Usage:
        """Return what two programs took, one after the other."""
        return Usage(
            self.wall + other.wall,
            self.cpu + other.cpu,
            max(self.rss, other.rss),
            max(self.anon, other.anon),
        )


def measure(command: Sequence[str], *, cwd: Path, log: IO[bytes]) -> Usage:
    """Run a command to its end.

    The kernel counts the caller's memory at the time of the fork as the child's, so the caller must stay
    small: this module and those that use it import nothing heavy.

    Raises:
        Failed: if it exits with anything but 0.
    """
    log.write(f"\n$ {' '.join(command)}\n".encode())
    log.flush()
    start = time.perf_counter()
    # Nothing waits for the child but wait4 below, which alone returns its resource usage.
    child = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    peak = [0]
    over = threading.Event()
    sampler = threading.Thread(target=_sample, args=(child.pid, peak, over))
    sampler.start()
    try:
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
    finally:
        over.set()
        sampler.join()
    if child.returncode != 0:
        raise Failed(f"exit code {child.returncode}: {' '.join(command)}")
    unit = 1024 if os.uname().sysname == "Linux" else 1  # getrusage counts kilobytes on Linux, bytes on macOS
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * unit, peak[0])


def _sample(pid: int, peak: list[int], over: threading.Event) -> None:
    status = Path(f"/proc/{pid}/status")
    while not over.wait(_SAMPLE_SECONDS):
        try:
            text = status.read_text()
        except OSError:
            return
        for line in text.splitlines():
            if line.startswith("RssAnon:"):
                peak[0] = max(peak[0], int(line.split()[1]) * 1024)


def drop_caches() -> None:
    """Make the next run read from the disk: empty the kernel's page cache.

    Raises:
        Failed: if that is not allowed.
    """
    os.sync()
    try:
        _DROP_CACHES.write_text("3\n")
    except OSError as e:
        raise Failed(f"--cold needs root to write {_DROP_CACHES}: {e.strerror}") from e
