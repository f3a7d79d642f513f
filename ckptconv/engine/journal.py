"""Remember which files of a run are whole, so that an interrupted run can go on; lock its folder."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType

from ckptconv.errors import OutputError

__all__ = ["JOURNAL", "Journal"]

JOURNAL = ".ckptconv-journal"


class Journal:
    """Keep the journal of one output folder open and locked for as long as a run lasts.

    Args:
        folder: The output folder; it exists.
        plan: Digest of the plan.
        resume: Whether the entries of an earlier run with the same plan count.

    Raises:
        OutputError: if another run holds the folder.
    """

    def __init__(self, folder: Path, plan: str, *, resume: bool) -> None:
        self._path = folder / JOURNAL
        self._file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as the lock)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._file.close()
            raise OutputError(
                "another run is writing into this folder",
                where=folder,
                hint="wait for it, or choose another folder",
            ) from e
        self.done: dict[str, str] = {}
        self._file.seek(0)
        lines = self._file.read().splitlines()
        if resume and lines and _entry(lines[0]).get("plan") == plan:
            for line in lines[1:]:
                if "file" in (entry := _entry(line)):
                    self.done[entry["file"]] = entry["digest"]
            self.resumed = True
        else:
            self.resumed = False
            self._file.truncate(0)
            self._write({"plan": plan})

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, digest: str) -> None:
        """Record that a file is whole and on disk under its temporary name."""
        self.done[name] = digest
        self._write({"file": name, "digest": digest})

    def remove(self) -> None:
        """Delete the journal; the run is over."""
        self._path.unlink(missing_ok=True)

    def _write(self, entry: dict[str, str]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _entry(line: str) -> dict[str, str]:
    """Read a line; one that was cut off by a crash is none."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
