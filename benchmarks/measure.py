"""Run a program as a whole process and say what it took: time, processor, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Failed", "Usage", "drop_caches", "measure", "warm"]

_SAMPLE_SECONDS = 0.01
_TIMEOUT_SECONDS = 900
_BLOCK = 1 << 22
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
        Failed: if it cannot be started, exits with anything but 0, or takes more than 15 minutes.
    """
    log.write(f"\n$ {' '.join(command)}\n".encode())
    log.flush()
    start = time.perf_counter()
    # Nothing waits for the child but wait4 below, which alone returns its resource usage.
    try:
        child = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    except OSError as e:
        raise Failed(f"{e.strerror}: {command[0]}") from e
    with suppress(OSError):  # where memory does not suffice, it goes and nothing else
        Path(f"/proc/{child.pid}/oom_score_adj").write_text("1000")
    peak = [0]
    over = threading.Event()
    limit = threading.Timer(_TIMEOUT_SECONDS, os.kill, (child.pid, signal.SIGKILL))
    limit.start()
    sampler = threading.Thread(target=_sample, args=(child.pid, peak, over))
    sampler.start()
    try:
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
    finally:
        limit.cancel()
        over.set()
        sampler.join()
    if child.returncode == -signal.SIGKILL:
        raise Failed(f"killed, for memory or after {_TIMEOUT_SECONDS} s")
    if child.returncode != 0:
        raise Failed(f"exit code {child.returncode}: {_last_line(log)}")
    unit = 1024 if os.uname().sysname == "Linux" else 1  # getrusage counts kilobytes on Linux, bytes on macOS
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * unit, peak[0])


def _last_line(log: IO[bytes]) -> str:
    with open(log.name, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing printed")


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


def warm(file: Path) -> None:
    """Bring a file's data into the page cache by reading them; holes are left out."""
    buffer = bytearray(_BLOCK)
    with open(file, "rb", buffering=0) as opened:
        end = at = 0
        size = file.stat().st_size
        while at < size:
            if at >= end:
                try:
                    at = os.lseek(opened.fileno(), at, os.SEEK_DATA)
                except OSError:  # a hole up to the end
                    return
                end = os.lseek(opened.fileno(), at, os.SEEK_HOLE)
            at += os.preadv(opened.fileno(), [memoryview(buffer)[: end - at]], at)


def drop_caches() -> None:
    """Make the next run read from the disk: empty the kernel's page cache.

    Raises:
        Failed: if that is not allowed.
    """
    os.sync()
    try:
        _DROP_CACHES.write_text("3\n")
    except OSError as e:
        raise Failed(f"an empty page cache needs root to write {_DROP_CACHES}: {e.strerror}") from e
