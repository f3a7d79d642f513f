#!/usr/bin/env python
"""Hold memory a virtual machine really has, and let go of it as fast as the program under test takes it.

    python benchmarks/pages.py BYTES        prints "ready" when it holds them; ends when its input ends

A virtual machine may hand free memory back to its host (free page reporting). Whoever touches such memory
then waits for the host: two seconds a gigabyte were seen, several times as long as the copy itself. What a
copy takes would depend on what ran before it. Memory that is held until it is needed costs what it costs on
a machine with memory of its own.
"""

from __future__ import annotations

import mmap
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["held"]

_CHUNK = 64 << 20
_SPARE = 512 << 20  # left free for everything else
_SECONDS = 0.005


@contextmanager
def held(nbytes: int) -> Iterator[None]:
    """Hold so much memory, or what is free of it, and let go of it while the body takes free memory.

    Another process holds it: the kernel counts the memory of whoever starts a program as that program's.
    Nothing is done where free memory is not handed back.
    """
    if not Path("/sys/module/page_reporting").is_dir():
        yield
        return
    command = [sys.executable, __file__, str(nbytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            holder.stdout.readline()
            yield
        finally:
            holder.stdin.close()


def main() -> None:
    """Hold memory until the standard input ends."""
    wanted = int(sys.argv[1])
    chunks: list[mmap.mmap] = []
    while len(chunks) * _CHUNK < wanted and _free() > _SPARE + _CHUNK:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        chunks.append(mmap.mmap(-1, _CHUNK, flags=flags))
    level = _free()
    print("ready", flush=True)
    while not select.select([sys.stdin], (), (), _SECONDS)[0]:
        while chunks and _free() < level:
            chunks.pop().close()


def _free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo tells nothing of free memory")


if __name__ == "__main__":
    main()
