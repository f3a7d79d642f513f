"""List the saves of a run: each step, tag or iteration, whether it is whole, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ckptconv.api.outlook import outlook
from ckptconv.errors import CkptconvError, FormatError, UsageError
from ckptconv.places.places import PathArg, forget, is_remote, place
from ckptconv.plans.shown import Shown, count
from ckptconv.readers.complete import files_of, lacking
from ckptconv.readers.reader import Save
from ckptconv.readers.registry import READERS, open_checkpoint
from ckptconv.readers.saves import Run, find_save, list_saves, numbered
from ckptconv.records import dataclass

__all__ = ["Saved", "Saves", "choose", "ls", "saved"]


@dataclass(frozen=True, slots=True)
class Saved:
    """Hold what is known of one save of a run.

    Attributes:
        step: Its step or iteration, an epoch where its name says no step; None for a tag without a number.
        name: What it is called; ``step=`` and ``--step`` take the one or the other.
        path: Its folder or file.
        bytes: What its files hold together, optimizer states too.
        modified: When the last of its files was written, in UTC, as ISO 8601; None where that is not known.
        complete: Whether it is whole.
        lacking: Why it is not.
        shared: Whether its step alone names another save.
    """

    step: int | None
    name: str
    path: str
    bytes: int
    modified: str | None
    complete: bool
    lacking: str | None
    shared: bool = False

    @property
    def folder_name(self) -> str:
        """What its conversion is called: ``step-100``; its own name, where others have that step."""
        return self.name if self.step is None or self.shared else f"step-{self.step}"


@dataclass(frozen=True, slots=True, repr=False)
class Saves(Shown):
    """Hold the saves of a run.

    Attributes:
        run: The folder they lie in.
        steps: The saves, newest last.
        command: What to type next.
        notes: What kept the newest whole save from being looked into.
    """

    run: str
    steps: tuple[Saved, ...]
    command: str
    notes: tuple[str, ...] = ()

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        whole = sum(s.complete for s in self.steps)
        return {
            "run": self.run,
            "saves": f"{count(len(self.steps), 'save')}, {whole:,} complete",
            "newest": None if self.newest is None else self.newest.name,
            "command": self.command,
        }

    @property
    def newest(self) -> Saved | None:
        """The newest whole save."""
        return next((s for s in reversed(self.steps) if s.complete), None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data for JSON."""
        return {
            "run": self.run,
            "steps": [
                {
                    "step": s.step,
                    "name": s.name,
                    "path": s.path,
                    "bytes": s.bytes,
                    "modified": s.modified,
                    "complete": s.complete,
                    "lacking": s.lacking,
                }
                for s in self.steps
            ],
            "command": self.command,
            "notes": list(self.notes),
        }


def ls(run: PathArg) -> Saves:
    """List every step, tag or iteration of a run of any format, newest last.

    Names, the producer's own markers and the ends of files tell which saves are whole; the newest of these
    is opened, from its metadata alone, to say what to type next.

    Args:
        run: The run's folder, or one of its saves.

    Raises:
        FormatError: if there is nothing there, or no save.
        UsageError: if several runs could be meant.
    """
    path = place(run)
    found = _look(path)
    newest = next((s for s in reversed(found) if s.complete), None)
    command, notes = _next(path, newest, found)
    return Saves(str(path), tuple(found), command, notes)


def _look(path: Path) -> list[Saved]:
    if not path.exists():
        raise FormatError("no such file or folder", where=path, hint="check the path")
    forget()
    listed = list_saves(path, READERS)
    if not listed.saves:
        raise FormatError("no save is here", where=path, hint="name the folder of a run")
    return [saved(save, listed) for save in listed.saves]


def saved(save: Save, run: Run) -> Saved:
    """Say what is known of a save."""
    why = lacking(save, run, READERS)
    size, modified = _measured(save)
    shared = save.step is not None and numbered(run.saves, str(save.step)) != [save]
    return Saved(save.step, save.name, str(save.path), size, modified, why is None, why, shared)


def _measured(save: Save) -> tuple[int, str | None]:
    """Return the bytes of a save, and when it was last written."""
    stats = [p.stat() for p in files_of(*(save.files or (save.path,))) if p.is_file()]
    if not stats:
        return 0, None
    if is_remote(save.path):
        return sum(s.st_size for s in stats), None
    newest = datetime.fromtimestamp(max(s.st_mtime for s in stats), tz=timezone.utc)
    return sum(s.st_size for s in stats), newest.isoformat(timespec="seconds").replace("+00:00", "Z")


def _next(path: Path, newest: Saved | None, every: Sequence[Saved]) -> tuple[str, tuple[str, ...]]:
    """Return what to type next, and what is to be said about it."""
    source = shlex.quote(str(path))
    if newest is None:
        return f"ckptconv convert {source} OUT --to hf --watch", ("no save is whole yet",)
    single = len(every) == 1 and Path(newest.path).is_dir()
    word = shlex.quote(newest.name) if newest.step is None or newest.shared else str(newest.step)
    which = "" if single or newest.path == str(path) else f" --step {word}"
    try:
        checkpoint = open_checkpoint(path, {"step": newest.name} if which else {})
        return outlook(path, checkpoint).command + which, ()
    except CkptconvError as e:
        return f"ckptconv inspect {source}{which}", (f"{newest.name}: {e.message}",)


def choose(run: PathArg, steps: str) -> tuple[Saved, ...]:
    """Return the saves of a run that are meant, newest last.

    Args:
        run: The run's folder.
        steps: ``all``; ``newest``, the newest whole one; ``last:N``, the N newest whole ones; or steps, tags
            or iterations, with commas between.

    Raises:
        UsageError: if there is no such step, or the words are none of these.
        FormatError: if there is no save at all.
    """
    path = place(run)
    found = _look(path)
    whole = [s for s in found if s.complete]
    if steps == "all":
        return tuple(found)
    word, _, number = steps.partition(":")
    if steps == "newest" or word == "last":
        count = 1 if steps == "newest" else int(number) if number.isdecimal() and len(number) < 9 else 0
        if count < 1:
            raise UsageError(f"--steps is not {steps!r}", hint="give last:5 for the five newest")
        if not whole:
            raise FormatError("no save of this run is whole", where=path, hint="ckptconv ls says why")
        return tuple(whole[-count:])
    words = [w.strip() for w in steps.split(",")]
    if not all(words):
        raise UsageError(f"--steps is not {steps!r}", hint="give all, newest, last:5, or steps: 100,200")
    chosen = {find_save(path, word, READERS).name for word in words}
    return tuple(s for s in found if s.name in chosen)
