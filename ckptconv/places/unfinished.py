"""Tell an output folder whose run was stopped while its files got their final names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from ckptconv.errors import FormatError
from ckptconv.places.regular import read_bytes

__all__ = ["JOURNAL", "refuse_unfinished"]

JOURNAL: Final = ".ckptconv-journal"
_ABOVE: Final = 3  # a rank's folder lies two levels below the output


def refuse_unfinished(path: Path) -> None:
    """Refuse to read a checkpoint, or a part of one, that a conversion has begun to name and not ended.

    Before that the folder holds what it held before the run; after it, all of the new files.

    Raises:
        FormatError: if it is one.
    """
    for folder in [path, *path.absolute().parents][:_ABOVE]:
        try:
            lines = read_bytes(folder / JOURNAL).decode(errors="replace").splitlines()
        except OSError:
            continue
        entries = [_entry(line) for line in lines]
        if any(e.get("naming") is True for e in entries) and not any(e.get("named") is True for e in entries):
            raise FormatError(
                "interrupted: a conversion into this folder was stopped before it was done",
                where=folder,
                hint="run the conversion again with --resume",
            )


def _entry(line: str) -> dict[str, object]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
