"""Ask for what tiles read of files behind URLs, some tiles ahead of who makes them, each byte once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from itertools import pairwise
from typing import Any

from ckptconv.places.files import SourceFiles
from ckptconv.records import dataclass

__all__ = ["Ahead", "Range", "Turn", "coalesced"]

Range = tuple[str, int, int]
"""A file, the first byte of it that is read, and one past the last."""

Turn = tuple[int, int]
"""The number of a job, and of the tiles it makes at a time: turns are in the order of what is written."""

# What lies between two ranges is asked for with them where it is as little as this, and all of it together at
# most this share of what is needed: a request costs as much time as a megabyte, but bytes may cost money.
_BETWEEN, _SHARE, _LITTLE = 1 << 20, 100, 64 << 10

_LARGEST = 8 << 20  # bytes of a request


@dataclass(slots=True)
class _Window:
    """What some turns read, asked for at once, and held until they are over."""

    turns: list[Turn] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    nbytes: int = 0
    left: int = 0
    asked: Sequence[Any] = ()


class Ahead:
    """Ask for what turns read in windows: one is worked on while the next is on its way.

    Threads may take their turns in any order as long as each begins its own in the given one.

    Args:
        turns: All turns that there will be, in order, and what each reads; drawn when there is room.
        sources: The files.
        stop: Set when no turn is to be waited for any more.
    """

    def __init__(
        self, turns: Iterator[tuple[Turn, list[Range]]], sources: SourceFiles, stop: threading.Event
    ) -> None:
        self._turns, self._sources, self._stop = turns, sources, stop
        self._memory = sources.memory
        self._changed = threading.Condition()
        self._windows: dict[Turn, _Window] = {}
        self._next: _Window | None = None
        self._over: tuple[Turn, list[Range]] | None = None  # drawn, and of the window after the next
        self._held = 0

    @contextmanager
    def turn(self, turn: Turn) -> Iterator[None]:
        """Take a turn: what it reads is asked for, and let go when all turns of its window are over."""
        window = self._enter(turn)
        try:
            yield
        finally:
            if window is not None:
                self._leave(window)

    def _enter(self, turn: Turn) -> _Window | None:
        """Wait until what a turn reads is asked for; None if the run is to stop."""
        with self._changed:
            while not self._stop.is_set():
                self._ask()
                if (found := self._windows.pop(turn, None)) is not None:
                    return found
                self._changed.wait(0.1)
        return None

    def _leave(self, window: _Window) -> None:
        with self._changed:
            window.left -= 1
            if window.left == 0:
                self._sources.let_go(window.asked)
                self._held -= window.nbytes
                self._ask()
                self._changed.notify_all()

    def _ask(self) -> None:
        """Ask for as many windows as there is memory for."""
        while (window := self._next or self._draw()) is not None:
            self._next = window
            if self._held and self._held + window.nbytes > self._memory:
                return
            self._next = None
            self._held += window.nbytes
            window.asked = self._sources.ask(window.ranges)
            self._windows |= dict.fromkeys(window.turns, window)

    def _draw(self) -> _Window | None:
        """Return the next turns whose ranges take half of the memory, at least one."""
        window = _Window()
        while (one := self._over or next(self._turns, None)) is not None:
            turn, ranges = one
            ranges = coalesced(ranges, between=0)
            nbytes = sum(end - start for _, start, end in ranges)
            if window.turns and window.nbytes + nbytes > self._memory // 2:
                self._over = one
                break
            self._over = None
            window.turns.append(turn)
            window.ranges += ranges
            window.nbytes += nbytes
        window.left = len(window.turns)
        window.ranges = coalesced(window.ranges)
        window.nbytes = sum(end - start for _, start, end in window.ranges)
        window.ranges = [piece for one in window.ranges for piece in _cut(one)]
        return window if window.turns else None


def coalesced(ranges: Iterable[Range], between: int = _BETWEEN) -> list[Range]:
    """Join ranges that overlap or touch, and the nearest of those that do not, while that adds little.

    Args:
        ranges: In any order.
        between: Most bytes between two that are joined.
    """
    joined: list[Range] = []
    for path, start, end in sorted(ranges):
        if joined and joined[-1][0] == path and start <= joined[-1][2]:
            joined[-1] = (path, joined[-1][1], max(end, joined[-1][2]))
        elif end > start:
            joined.append((path, start, end))
    room = sum(end - start for _, start, end in joined) // _SHARE + _LITTLE
    gaps = sorted(
        (two[1] - one[2], i)
        for i, (one, two) in enumerate(pairwise(joined))
        if one[0] == two[0] and two[1] - one[2] <= between
    )
    closed = set()
    for gap, i in gaps:
        if gap > room:
            break
        room -= gap
        closed.add(i)
    found: list[Range] = []
    for i, (path, start, end) in enumerate(joined):
        if i - 1 in closed:
            found[-1] = (path, found[-1][1], end)
        else:
            found.append((path, start, end))
    return found


def _cut(one: Range) -> Iterator[Range]:
    """Cut a range into requests of about the same size."""
    path, start, end = one
    count = -(-(end - start) // _LARGEST)
    for i in range(count):
        yield path, start + (end - start) * i // count, start + (end - start) * (i + 1) // count
