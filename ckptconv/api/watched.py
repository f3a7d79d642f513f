"""Follow a run that goes on: tell which of its saves have become whole."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from ckptconv.api.ls import Saved, saved
from ckptconv.errors import CkptconvError, UsageError
from ckptconv.places.places import PathArg, forget, place
from ckptconv.places.unfinished import JOURNAL
from ckptconv.readers.registry import READERS
from ckptconv.readers.saves import list_saves

__all__ = ["Watched"]

_REST: Final = 60.0  # seconds


class Watched:
    """Follow a run that goes on: which of its saves have become whole, and have not been taken yet.

    A save is ready when it is whole, and was the same size at the look before, or has rested for a while: not
    every producer marks the end of a save.

    Args:
        run: The run's folder; it may be empty, or not be there yet.
    """

    def __init__(self, run: PathArg) -> None:
        self._path = place(run)
        self._done: set[str] = set()
        self._failed: dict[str, Saved] = {}
        self._before: dict[str, Saved] = {}

    def ready(self) -> list[Saved]:
        """Look at the run; return the saves that are ready, oldest first.

        Raises:
            UsageError: if several runs could be meant.
            OSError: if the folder cannot be read.
        """
        found: list[Saved] = []
        for save in self._look():
            rested = self._before.get(save.name) == save or _rested(save)
            self._before[save.name] = save
            if save.complete and rested and self._failed.get(save.name) != save:
                found.append(save)
        return found

    def pass_over(self) -> None:
        """Take what is whole now for done."""
        self._done |= {s.name for s in self._look() if s.complete}

    def done(self, save: Saved) -> None:
        """Do not return a save again."""
        self._done.add(save.name)

    def failed(self, save: Saved) -> None:
        """Return a save again only when its files have changed."""
        self._failed[save.name] = save

    @staticmethod
    def is_interrupted(out: Path) -> bool:
        """Whether a folder holds what an interrupted conversion left."""
        return (out / JOURNAL).exists()

    def _look(self) -> list[Saved]:
        try:
            forget()
            listed = list_saves(self._path, READERS)
            saves = [s for s in listed.saves if s.name not in self._done and s.path != self._path]
            return [saved(s, listed) for s in saves]
        except UsageError:  # several runs could be meant
            raise
        except (CkptconvError, FileNotFoundError):
            return []  # it is being written, or not there yet


def _rested(save: Saved) -> bool:
    if save.modified is None:
        return False
    age = datetime.now(timezone.utc) - datetime.fromisoformat(save.modified.replace("Z", "+00:00"))
    return age.total_seconds() > _REST
