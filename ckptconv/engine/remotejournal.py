"""Keep the journal of a run whose output lies behind a URL: an object, written anew with every entry."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.engine.journal import Journal, parse
from ckptconv.errors import OutputError
from ckptconv.places import objects
from ckptconv.places.unfinished import JOURNAL

__all__ = ["RemoteJournal"]


class RemoteJournal(Journal):
    """Stand for a journal on disk.

    Two runs that begin at the same time are kept apart where the store can create an object only if there
    is none (S3); whether the run that left a journal is still alive cannot be known.

    Args:
        folder: The output folder.
        plan: Digest of the plan.
        resume: Whether the entries of an earlier run with the same plan count.
        overwrite: Whether the run is to replace a model in the folder; a resumed run is, if it was before.

    Raises:
        OutputError: if there is a journal, and neither ``resume`` nor ``overwrite`` is asked for.
    """

    def __init__(self, folder: Path, plan: str, *, resume: bool, overwrite: bool = False) -> None:
        self._path, self._url = folder / JOURNAL, str(folder / JOURNAL)
        self._writing = threading.Lock()
        self.uploads: dict[str, Mapping[str, Any]] = {}
        self.abandoned: list[tuple[str, Mapping[str, Any]]] = []
        text = self._path.read_text(errors="replace") if self._path.is_file() else ""
        found = parse(text)
        self.found = found is not None
        self.resumed = resume and found is not None and found.plan == plan
        if found is not None and not resume and not overwrite:
            raise OutputError(
                "the folder holds an interrupted run, or another run is writing into it",
                where=folder,
                hint="if it is not running, give --resume to go on with it, or --overwrite to start again",
            )
        for line in text.splitlines():
            self._remember(line)
        if self.resumed and found is not None:
            self._entries = found
            self._lines = text.splitlines()
        else:
            self.abandoned += [(n, t) for n, t in self.uploads.items()]
            self.uploads = {}
            first = {"plan": plan, "overwrite": overwrite, "run": uuid.uuid4().hex}
            self._lines = [json.dumps(first)]
            self._entries = parse(self._lines[0])  # type: ignore[assignment]
            try:
                if not self._path.is_file():
                    objects.claim(self._url, self._text())
                else:
                    objects.put(self._url, self._text())
            except FileExistsError as e:
                raise OutputError(
                    "another run has just begun in this folder", where=folder, hint="choose another folder"
                ) from e

    def _remember(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), dict):
            return
        if isinstance(name := entry.get("begun"), str):
            self.abandoned.append((name, entry["token"]))
        elif isinstance(name := entry.get("upload"), str):
            self.uploads[name] = entry["token"]
            self.abandoned = [
                (n, t) for n, t in self.abandoned if t.get("upload") != entry["token"].get("upload")
            ]

    def begun(self, name: str, token: Mapping[str, Any]) -> None:
        """Record that an upload has begun, so that a later run may abort it."""
        self._write({"begun": name, "token": dict(token)})

    def uploaded(self, name: str, token: Mapping[str, Any]) -> None:
        """Record that all of a file has been sent; `add` follows."""
        self.uploads[name] = token
        self._write({"upload": name, "token": dict(token)})

    def remove(self) -> None:
        """Delete the journal; the run is over."""
        objects.delete(self._url)

    def release(self) -> None:
        """Leave the folder as it was found."""
        if not self.found:
            self.remove()

    def _write(self, entry: dict[str, Any]) -> None:
        with self._writing:
            self._lines.append(json.dumps(entry))
            objects.put(self._url, self._text())

    def _text(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode()
