"""Show a bar while something runs that Python has asked for, in a terminal or a notebook."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

from ckptconv.engine.events import Event, Listener, Progress, Started
from ckptconv.numbers.rates import how_far

__all__ = ["following"]

_OFTEN: Final = 0.2  # seconds between two states of a line


@contextmanager
def following(listen: Listener | None, what: str, *, progress: bool) -> Iterator[Listener | None]:
    """Return a listener that also moves a bar, which goes away at the end.

    Args:
        listen: Who listens too.
        what: What is done.
        progress: Whether there is to be a bar.
    """
    if not progress:
        yield listen
        return
    import rich.progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter and find_spec("ipywidgets") is None:  # rich could draw nothing, and would warn
        line = _Line(what, listen)
        try:
            yield line.tell
        finally:
            line.clear()
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as bar:
        tasks: list[bars.TaskID] = []

        def tell(event: Event) -> None:
            if isinstance(event, Started):
                tasks.append(bar.add_task(what, total=event.total, completed=event.resumed))
            elif isinstance(event, Progress) and tasks:
                bar.advance(tasks[-1], event.count)
            if listen is not None:
                listen(event)

        yield tell


class _Line:
    """Write how far something is over and over into one line, in a notebook that has no widgets."""

    def __init__(self, what: str, listen: Listener | None) -> None:
        self._what, self._listen = what, listen
        self._lock = threading.Lock()
        self._total = self._done = self._fresh = self._width = 0
        self._start = self._said = time.perf_counter()

    def tell(self, event: Event) -> None:
        """Take an event, from any thread."""
        if isinstance(event, Started):
            self._total, self._done, self._fresh = event.total, event.resumed, 0
            self._start = self._said = time.perf_counter()
        elif isinstance(event, Progress):
            with self._lock:
                self._done, self._fresh = self._done + event.count, self._fresh + event.count
                now = time.perf_counter()
                if now - self._said >= _OFTEN:
                    self._said = now
                    self._show(now - self._start)
        if self._listen is not None:
            self._listen(event)

    def _show(self, seconds: float) -> None:
        text = how_far(self._what, self._done, self._total, fresh=self._fresh, seconds=seconds)
        self._width = max(self._width, len(text))
        sys.stderr.write(f"\r{text:{self._width}}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave an empty line."""
        if self._width:
            sys.stderr.write(f"\r{'':{self._width}}\r")
            sys.stderr.flush()
