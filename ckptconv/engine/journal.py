"""Remember which files of a run are whole, so that an interrupted run can go on; lock its folder."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import field
from pathlib import Path
from types import TracebackType
from typing import Any

from ckptconv.errors import OutputError
from ckptconv.places.unfinished import JOURNAL
from ckptconv.records import dataclass

__all__ = ["JOURNAL", "Entries", "Journal", "marks", "parse", "read_entries"]


@dataclass(slots=True)
class Entries:
    """Hold what a journal says.

    Attributes:
        plan: Digest of the plan it was written for.
        overwrite: Whether that run was to replace a model already in the folder.
        done: Digest of each file that is whole and on disk.
        naming: Whether all files were whole, and their final names were being given.
    """

    plan: str
    overwrite: bool = False
    done: dict[str, str] = field(default_factory=dict)
    naming: bool = False


def read_entries(folder: Path) -> Entries | None:
    """Return what the journal in a folder says, if there is one.

    Raises:
        OutputError: if the run that writes it is still alive.
    """
    try:
        with open(folder / JOURNAL, "r+", encoding="utf-8", errors="replace", opener=_no_link) as file:
            _lock(file.fileno(), folder)
            return parse(file.read())
    except FileNotFoundError:
        return None


def marks(folder: Path, run: str) -> bool:
    """Tell whether a folder is the one that the run of this name writes into. Takes no lock."""
    try:
        text = (folder / JOURNAL).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(_entry(line).get("run") == run for line in text.splitlines())


class Journal:
    """Keep the journal of one output folder open and locked for as long as a run lasts.

    Args:
        folder: The output folder; it exists.
        plan: Digest of the plan.
        resume: Whether the entries of an earlier run with the same plan count.
        overwrite: Whether the run is to replace a model in the folder; a resumed run is, if it was before.

    Raises:
        OutputError: if another run holds the folder.
    """

    def __init__(self, folder: Path, plan: str, *, resume: bool, overwrite: bool = False) -> None:
        self._path = folder / JOURNAL
        self._file = open(  # noqa: SIM115  (as long as the lock)
            self._path, "a+", encoding="utf-8", errors="replace", opener=_no_link
        )
        try:
            _lock(self._file.fileno(), folder)
            if not self._is_current():  # the run that held the lock has just ended, and taken the file away
                raise OutputError("another run has just ended in this folder", where=folder, hint="run again")
            self._file.seek(0)
            text = self._file.read()
            found = parse(text)
            self.found = found is not None
            self.resumed = resume and found is not None and found.plan == plan
            if self.resumed and found is not None:
                self._entries = found
                if not text.endswith("\n"):  # a line cut off by a crash must not swallow the next one
                    self._file.write("\n")
            else:
                self._entries = Entries(plan, overwrite)
                self._file.truncate(0)
                self._write({"plan": plan, "overwrite": overwrite})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def done(self) -> dict[str, str]:
        """Digest of each file that is whole."""
        return self._entries.done

    @property
    def naming(self) -> bool:
        """Whether an earlier run was already giving the final names."""
        return self._entries.naming

    @property
    def overwrite(self) -> bool:
        """Whether a model in the folder is to be replaced."""
        return self._entries.overwrite

    def add(self, name: str, digest: str) -> None:
        """Record that a file is whole and on disk under its temporary name."""
        self.done[name] = digest
        self._write({"file": name, "digest": digest})

    def mark(self, run: str) -> None:
        """Record the name of this run, by which other machines know the folder: see `marks`."""
        self._write({"run": run})

    def name_all(self) -> None:
        """Record that all files are whole and get their final names from now on."""
        self._entries.naming = True
        self._write({"naming": True})

    def named_all(self) -> None:
        """Record that all files have their final names, where the journal stays until they are verified."""
        self._write({"named": True})

    def remove(self) -> None:
        """Delete the journal; the run is over."""
        self._path.unlink(missing_ok=True)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _no_link(path: str, flags: int) -> int:
    """Open the journal itself, never what a link of its name points at."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _lock(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        raise OutputError(
            "another run is writing into this folder",
            where=folder,
            hint="wait for it, or choose another folder",
        ) from e


def parse(text: str) -> Entries | None:
    """Read the lines; one that was cut off by a crash is none."""
    lines = [_entry(line) for line in text.splitlines()]
    if not lines or not isinstance(lines[0].get("plan"), str):
        return None
    found = Entries(lines[0]["plan"], lines[0].get("overwrite") is True)
    for entry in lines[1:]:
        if isinstance(entry.get("file"), str) and isinstance(entry.get("digest"), str):
            found.done[entry["file"]] = entry["digest"]
        found.naming = found.naming or entry.get("naming") is True
    return found


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
