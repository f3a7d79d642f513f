"""Follow a run: a bar on a terminal; in a log a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ckptconv.cli.console import keep_notes, remarks
from ckptconv.engine.events import Discarded, Event, Progress, Started
from ckptconv.numbers.rates import how_far

__all__ = ["Follower", "follow"]

_EVERY: Final = 10.0  # seconds between two lines of a log, at most
_OFTEN: Final = 1.0  # and at least, however soon the next per cent is done


class Follower:
    """Take the events of one run, and the time.

    Attributes:
        seconds: How long it took, when it is over.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds = 0.0

    def listen(self, event: Event) -> None:
        """Take an event, from any thread."""
        if isinstance(event, Discarded):
            text = "the interrupted run there had other flags or another source: nothing of it is kept"
            keep_notes((("warning", f"{event.folder}: {text}"),))

    def stop(self) -> None:
        """Take the time."""
        self.seconds = time.perf_counter() - self._start


class _Bar(Follower):
    """Move a bar on a terminal."""

    def __init__(self, bar: Any, what: str) -> None:
        super().__init__()
        self._bar, self._what = bar, what
        self._task: Any = None

    def listen(self, event: Event) -> None:
        if isinstance(event, Started):
            self._task = self._bar.add_task(self._what, total=event.total, completed=event.resumed)
        elif isinstance(event, Progress):
            self._bar.advance(self._task, event.count)
        else:
            super().listen(event)


class _Log(Follower):
    """Print a line for every per cent, at most one a second, and at least one every ten seconds."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._lock = threading.Lock()
        self._total = self._done = self._resumed = 0
        self._said = (self._start, 0)

    def listen(self, event: Event) -> None:
        if isinstance(event, Started):
            self._total, self._done, self._resumed = event.total, event.resumed, event.resumed
            self._start = time.perf_counter()
            self._said = (self._start, self._percent)
        elif isinstance(event, Progress):
            with self._lock:
                self._done += event.count
                self._say()
        else:
            super().listen(event)

    @property
    def _percent(self) -> int:
        return 100 * self._done // self._total if self._total else 100

    def _say(self) -> None:
        now = time.perf_counter()
        when, percent = self._said
        more = self._percent > percent and now - when >= _OFTEN
        if self._done >= self._total or not (more or now - when >= _EVERY):
            return
        self._said = (now, self._percent)
        fresh, seconds = self._done - self._resumed, now - self._start
        remarks().print(how_far(self._what, self._done, self._total, fresh=fresh, seconds=seconds))


@contextmanager
def follow(what: str, *, quiet: bool) -> Iterator[Follower]:
    """Follow what is done, under a label; a bar disappears at the end.

    Args:
        what: The label: ``writing``, ``step-100: writing``.
        quiet: Whether nothing is to be shown.
    """
    if quiet:
        follower = Follower()
        follower.listen = lambda event: None  # type: ignore[method-assign]
        yield follower
        follower.stop()
        return
    if not sys.stderr.isatty():
        follower = _Log(what)
        yield follower
        follower.stop()
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(None),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=remarks(), transient=True, expand=True) as bar:
        follower = _Bar(bar, what)
        yield follower
        follower.stop()
