"""Make one system call of a run fail, once: any that opens, reads, writes, syncs, names or removes a file.

Files opened with `open` go through `_pyio` meanwhile, which does the same in Python, so that every call is
seen.
"""

from __future__ import annotations

import _pyio
import builtins
import contextlib
import errno
import io
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ckptconv.engine.journal import JOURNAL
from faults.killing import final, takers, untimed
from faults.kinds import Kind, Source
from running import Result, ckptconv, contents

__all__ = ["FAULTS", "Bench", "Fault", "calls", "failing"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Say what goes wrong in a call.

    Attributes:
        call: The function of `os`.
        number: The error it raises; 0 for one that does half of what it was asked for.
    """

    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.call} {errno.errorcode[self.number] if self.number else 'short'}"


_WITH_PATH = ("open", "stat", "scandir", "listdir", "mkdir", "rename", "replace", "unlink", "remove", "rmdir")
_WITH_FD = ("read", "pread", "preadv", "write", "pwrite", "fsync", "ftruncate", "posix_fallocate", "fstat")

FAULTS: tuple[Fault, ...] = (
    *(Fault("open", n) for n in (errno.EIO, errno.EACCES, errno.EMFILE)),
    *(Fault(c, n) for c in ("read", "pread", "preadv") for n in (errno.EIO, 0)),
    *(Fault(c, n) for c in ("write", "pwrite") for n in (errno.ENOSPC, errno.EIO, 0)),
    *(Fault("fsync", n) for n in (errno.EIO, errno.ENOSPC)),
    *(Fault("posix_fallocate", n) for n in (errno.ENOSPC, errno.EOPNOTSUPP)),
    Fault("ftruncate", errno.EIO),
    *(Fault(c, errno.EIO) for c in ("rename", "replace", "stat", "fstat", "scandir")),
    *(Fault(c, errno.EACCES) for c in ("mkdir", "unlink", "rename", "replace")),
)


class _Watch:
    """Count the calls on files below some folders, and let one of them fail."""

    def __init__(self, folders: tuple[Path, ...], fault: Fault | None, at: int) -> None:
        self._below = tuple(os.fspath(f) + os.sep for f in folders)
        self._exact = {os.fspath(f) for f in folders}
        self._fault, self._at = fault, at
        self._lock = threading.Lock()
        self._fds: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self.happened = ""

    def is_ours(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        text = os.path.abspath(os.fspath(path))
        return text in self._exact or text.startswith(self._below)

    def wrap(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)
        by_fd = name in _WITH_FD

        def call(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else None
            path = self._fds.get(first) if by_fd and isinstance(first, int) else first
            if path is None or not self.is_ours(path):
                return real(*args, **kwargs)
            with self._lock:
                self.counts[name] += 1
                strikes = (
                    self._fault is not None and self._fault.call == name and self.counts[name] == self._at
                )
            if strikes:
                assert self._fault is not None
                self.happened = f"{self._fault} on {os.fspath(path)}"
                if self._fault.number:
                    raise OSError(self._fault.number, os.strerror(self._fault.number), os.fspath(path))
                return real(*_half(name, args), **kwargs)
            found = real(*args, **kwargs)
            if name == "open":
                self._fds[found] = os.fspath(path)
            return found

        return call

    def close(self, fd: int) -> None:
        self._fds.pop(fd, None)
        _close(fd)


_close = os.close


def _half(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Ask for half as much."""
    if name in ("read", "pread"):
        return args[0], max(1, args[1] // 2), *args[2:]
    if name == "preadv":
        view = memoryview(args[1][0])
        return args[0], [view[: max(1, len(view) // 2)]], args[2]
    data = memoryview(args[1])
    return args[0], data[: max(1, len(data) // 2)], *args[2:]


@contextlib.contextmanager
def failing(folders: tuple[Path, ...], fault: Fault | None = None, at: int = 0) -> Iterator[_Watch]:
    """Let the ``at``-th call of a kind on files below ``folders`` fail; without a fault, count."""
    watch = _Watch(folders, fault, at)
    with contextlib.ExitStack() as stack:
        for name in (*_WITH_PATH, *_WITH_FD):
            if hasattr(os, name):
                stack.enter_context(patch.object(os, name, watch.wrap(name)))
        stack.enter_context(patch.object(os, "close", watch.close))
        for module in (builtins, io):
            stack.enter_context(patch.object(module, "open", _pyio.open))
        stack.enter_context(patch.object(os, "fdopen", _pyio.open))
        yield watch


# What is written when all else is whole: a run without them is none, or one that was not verified.
_LAST = {"ckptconv-verify.json", "latest_checkpointed_iteration.txt"}


class Bench:
    """Convert one kind again and again, each time with another call that fails.

    Args:
        kind: What to convert.
        source: The sources.
        scratch: A folder for the outputs.
    """

    def __init__(self, kind: Kind, source: Source, scratch: Path) -> None:
        self._kind, self._source, self._out = kind, source, scratch / "out"
        self.tally: Counter[str] = Counter()
        self.lost: list[str] = []
        self._line = [*source.words(kind, self._out), "--quiet", "--workers", "2"]  # the source is made
        self._old = self._fresh()
        with failing(self._watched) as watch:
            assert self._run().code == 0
        self.counts: Mapping[str, int] = dict(watch.counts)
        self._expected = untimed(contents(self._out))

    @property
    def _watched(self) -> tuple[Path, ...]:
        return self._source.base, self._out

    def _run(self) -> Result:
        return ckptconv(*self._line)

    def _fresh(self) -> dict[str, bytes]:
        shutil.rmtree(self._out, ignore_errors=True)
        if self._kind.old is None:
            return {}
        self._source.fill(self._kind, self._out)
        return dict(final(self._out))

    def fail(self, fault: Fault, at: int) -> None:
        """Run with one call that fails, and judge what is left; run again, and compare the bytes."""
        self._fresh()
        with failing(self._watched, fault, at) as watch:
            result = self._run()
        self.tally["runs"] += 1
        if not watch.happened:
            self.tally["missed"] += 1  # threads take turns as they like
            return
        try:
            self._judge(result, fault)
        except AssertionError as error:
            self.lost.append(f"{self._kind.name}, {watch.happened}, call {at}: {error}"[:2000])

    def _judge(self, result: Result, fault: Fault) -> None:
        said = result.err
        assert "internal error" not in said and "Traceback" not in said, said
        if result.code == 0:
            self.tally["survived"] += 1
        else:
            assert result.code == 1 and fault.number, f"exit code {result.code}: {said}"
            assert said.count("error:") == 1 and "do:" in said, said
            self.tally["refused"] += 1
            self._look()
            if _uncertified(self._expected) == untimed(contents(self._out)):
                return  # it was done, and verifying it failed
            words = [w for w in self._line if w != "--overwrite" or "--resume" not in said]
            again = ckptconv(*words, *(["--resume"] if "--resume" in said else []))
            assert again.code == 0, f"after {said}, again: {again.err}"
        now = untimed(contents(self._out))
        differs = sorted(n for n in {*now, *self._expected} if now.get(n) != self._expected.get(n))
        assert not differs, f"other bytes: {differs}"

    def _look(self) -> None:
        """Nothing that looks whole may be anything but the old model or the new one."""
        if not self._out.exists():
            return
        files = final(self._out)
        journal = (self._out / JOURNAL).read_bytes() if (self._out / JOURNAL).exists() else b""
        wrong = [n for n, b in files.items() if b not in (self._expected.get(n), self._old.get(n))]
        assert not wrong, f"under a final name, but not whole: {wrong}"
        if self._old and b'"naming"' not in journal and journal:
            assert files == self._old, "the old model is touched before the new one is whole"
        if takers(self._out, files):
            lacking = {n.rpartition("/")[2] for n in self._expected.keys() - files.keys()}
            assert files in (self._expected, self._old) or lacking <= _LAST, f"looks whole without {lacking}"


def _uncertified(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {n: b for n, b in files.items() if n != "ckptconv-verify.json"}


def calls(bench: Bench, fault: Fault, most: int, seed: int) -> list[int]:
    """Choose which calls of a kind to let fail: the first, the last, and some between."""
    count = bench.counts.get(fault.call, 0)
    if count <= most:
        return list(range(1, count + 1))
    chosen = random.Random(f"{seed} {fault}")
    if most == 1:
        return [chosen.randint(1, count)]
    return sorted({1, count, *chosen.sample(range(2, count), most - 2)})
