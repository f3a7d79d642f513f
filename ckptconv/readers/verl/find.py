"""Find the files of the ranks in what a user names.

File names: verl 01ee5e04, ``verl/utils/checkpoint/fsdp_checkpoint_manager.py``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Final

from ckptconv.errors import PlanError, UsageError
from ckptconv.plans.checkpoint import Note
from ckptconv.readers.dcp.find import numbered, tracked

__all__ = ["STEP", "files_of", "find", "lacking", "recognise"]

STEP: Final = re.compile(r"global_step_(\d+)")
_FILE: Final = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")


def recognise(path: Path) -> bool:
    """Whether a path is one of verl's FSDP saves, or of a run of them."""
    return find(path) is not None


def _ranks(folder: Path) -> dict[int, dict[int, Path]]:
    """Return the files of a folder by world size and rank."""
    found: dict[int, dict[int, Path]] = defaultdict(dict)
    for p in sorted(folder.iterdir()):
        if m := _FILE.fullmatch(p.name):
            found[int(m[1])][int(m[2])] = p
    return found


def find(path: Path) -> tuple[Path, list[Note]] | None:
    """Find the folder of the ranks' files: itself, ``actor`` in it, or the step a run's tracker names."""
    if path.is_file():
        return (path.parent, []) if _FILE.fullmatch(path.name) else None
    if not path.is_dir():
        return None
    for folder in (path, path / "actor"):
        if folder.is_dir() and _ranks(folder):
            return folder, []
    steps = [(n, p) for n, p in numbered(path) if STEP.fullmatch(p.name)]
    inside = [(n, f) for n, p in steps for f in (p, p / "actor") if f.is_dir() and _ranks(f)]
    if not inside:
        return None
    named = tracked(path)
    number, folder = next((s for s in inside if s[0] == named), inside[-1])
    how = "named by the tracker file" if number == named else f"the newest of {len(inside)}"
    return folder, [Note("info", f"{folder.relative_to(path)} is {how} in {path}")]


def files_of(path: Path, folder: Path) -> dict[int, Path]:
    """Return the files of all ranks.

    Raises:
        UsageError: if files of several world sizes are there, and none is named.
        PlanError: if a rank is missing.
    """
    worlds = _ranks(folder)
    named = _FILE.fullmatch(path.name) if path.is_file() else None
    if named is None and len(worlds) > 1:
        raise UsageError(
            f"files of {len(worlds)} world sizes are here: {', '.join(map(str, sorted(worlds)))}",
            where=folder,
            hint="name a file of the one that is meant, or move the others away",
        )
    world = int(named[1]) if named else next(iter(worlds))
    files = worlds[world]
    missing = next((r for r in range(world) if r not in files), None)
    if missing is not None or len(files) != world:
        more = world - sum(r < world for r in files) - 1
        what = f"rank {missing}" + (f" and {more} more are" if more else " is")
        raise PlanError(
            f"ranks beyond {world} are here" if missing is None else f"{what} missing of {world} ranks",
            where=folder,
            hint=f"copy all model_world_size_{world}_rank_*.pt files",
        )
    return dict(sorted(files.items()))


def lacking(path: Path) -> str | None:
    """Say what keeps the newest save of a run from being read."""
    try:
        found = find(path)
        if found is not None:
            files_of(path, found[0])
    except PlanError as e:
        return e.message
    return None
