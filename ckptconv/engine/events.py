"""Define what a running conversion tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable

from ckptconv.records import dataclass

__all__ = ["Discarded", "Event", "FileDone", "Listener", "Progress", "Started", "Stored"]


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: bytes to write in all, of which ``resumed`` were there already."""

    total: int
    resumed: int


@dataclass(frozen=True, slots=True)
class Discarded:
    """What an interrupted run left in ``folder`` is of another plan: nothing of it is kept."""

    folder: str


@dataclass(frozen=True, slots=True)
class Progress:
    """``count`` more bytes are written."""

    count: int


@dataclass(frozen=True, slots=True)
class FileDone:
    """A file is whole, digested and on disk, not yet under its final name."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Stored:
    """All files are under their final names."""

    folder: str


Event = Started | Discarded | Progress | FileDone | Stored
Listener = Callable[[Event], None]
