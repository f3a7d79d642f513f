"""Check what any checkpoint must be, whoever read it: names that can be written, files that are its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ckptconv.errors import FormatError
from ckptconv.facts.typed import short
from ckptconv.places.places import is_remote
from ckptconv.places.regular import is_within
from ckptconv.plans.checkpoint import Checkpoint, Note

__all__ = ["sound"]

_SHOWN = 3
_DIGITS = 18  # of a layer's or an expert's number
_MANY = re.compile(rf"[0-9][0-9]{{{_DIGITS}}}")  # one digit first: they are what is looked for
_NUMBER = re.compile(rf"(?:^|\.)[0-9]{{{_DIGITS + 1},}}(?:\.|$)", re.MULTILINE)


def sound(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return a checkpoint with a note on files behind links that lead out of it.

    Raises:
        FormatError: if a name is no text, which no file that is written can hold, or counts without end.
    """
    relation = checkpoint.relation
    _refuse_no_text(
        chain(checkpoint.stored, relation.left, relation.right, checkpoint.aliases, checkpoint.unresolved),
        path,
    )
    if not (outside := _outside(checkpoint, path)):
        return checkpoint
    shown = ", ".join(f"{p} -> {os.path.realpath(p)}" for p in outside[:_SHOWN])
    more = f" and {len(outside) - _SHOWN} more" if len(outside) > _SHOWN else ""
    note = Note("warning", f"read from outside the checkpoint, where links lead: {shown}{more}")
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _refuse_no_text(names: Iterable[str], path: Path) -> None:
    found = list(dict.fromkeys(names))
    if _MANY.search(lines := "\n".join(found)) and _NUMBER.search(lines):
        long = next(n for n in found if _NUMBER.search(n))
        text = f"the name {short(long)} counts further than any model"
        raise FormatError(text, where=path, hint="rename the tensor where the checkpoint was saved")
    try:
        "".join(found).encode()
    except UnicodeEncodeError as e:
        at = e.start
        for name in found:
            if at < len(name):
                hint = "rename the tensor where the checkpoint was saved"
                text = f"the name {name!r} is no text: it holds half a character"
                raise FormatError(text, where=path, hint=hint) from e
            at -= len(name)


def _outside(checkpoint: Checkpoint, path: Path) -> list[str]:
    """Return the files that lie neither below what was named nor in a hub's cache."""
    if is_remote(path):
        return []
    real = Path(os.path.realpath(path))  # what a user names may be a link
    roots = {path if path.is_dir() else path.parent, real if real.is_dir() else real.parent}
    roots.add(checkpoint.root if checkpoint.root.is_dir() else checkpoint.root.parent)
    inside: dict[str, bool] = {}  # thousands of ranks lie in a few folders

    def is_own(file: str) -> bool:
        folder = os.path.dirname(file)
        if folder not in inside:
            inside[folder] = any(is_within(folder, root) for root in roots)
        if inside[folder] and not os.path.islink(file):
            return True
        return any(is_within(file, root) for root in roots)

    return [f.path for f in checkpoint.files if not is_own(f.path)]
