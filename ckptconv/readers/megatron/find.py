"""Find the iteration of a run and the files of its ranks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.parallel import Grid
from ckptconv.places.regular import read_head

__all__ = ["Run", "find_run", "iteration_folder", "rank_folders"]

TRACKER = "latest_checkpointed_iteration.txt"
# model_optim_rng.pt since Megatron-LM 2.0; model_rng.pt beside a distributed optimizer in old releases.
_FILES = ("model_optim_rng.pt", "model_rng.pt")
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Run:
    """Locate one saved iteration.

    Attributes:
        root: The folder that holds the tracker, or the iteration's folder where there is none.
        data: The iteration's folder.
        files: The file of each rank folder, by the folder's name.
    """

    root: Path
    data: Path
    files: dict[str, Path]


def rank_folders(folder: Path) -> dict[str, Path]:
    """Return the rank folders in a folder and the checkpoint file of each."""
    names = [p.name for p in folder.glob("mp_rank_*") if p.is_dir()]
    found = {}
    for name in sorted(Grid.numbers(names)):
        file = next((folder / name / f for f in _FILES if (folder / name / f).is_file()), None)
        if file is None:
            raise FormatError(
                f"{name} holds no {_FILES[0]}",
                where=folder,
                hint="the save was cut off, or the copy incomplete",
            )
        found[name] = file
    return found


def has_ranks(folder: Path) -> bool:
    """Whether a folder holds Megatron's rank folders (DeepSpeed's files begin alike, but are files)."""
    return any(p.is_dir() and any((p / f).is_file() for f in _FILES) for p in folder.glob("mp_rank_*"))


def iteration_folder(path: Path, iteration: int | None = None) -> Path | None:
    """Return the folder of the iteration asked for, or of the newest; None if this is no run's folder.

    Raises:
        UsageError: if there is no such iteration.
        FormatError: if the tracker names none that is there.
    """
    tracker = path / TRACKER
    if iteration is not None:
        folder = path / f"iter_{iteration:07d}"
        if not folder.is_dir():
            there = sorted(p.name for p in path.glob("iter_*"))
            raise UsageError(
                f"there is no iteration {iteration}", hint=f"found: {', '.join(there) or 'none'}"
            )
        return folder
    if tracker.is_file():
        text = read_head(tracker, 256).decode(errors="replace").strip()
        name = (
            "release" if text == "release" else f"iter_{int(text):07d}" if _NUMBER.fullmatch(text) else None
        )
        if name is None:
            raise FormatError(f"the tracker says {text[:40]!r}, which is no iteration", where=tracker)
        if not (path / name).is_dir():
            if (path / f"global_step_{text}").is_dir() or (path / f"global_step{text}").is_dir():
                return None  # another library's tracker of this name: verl's
            raise FormatError(
                f"the tracker says {text}, but there is no folder {name}",
                where=tracker,
                hint="name the iteration's folder itself, or give --step",
            )
        return path / name
    found = [p for p in path.glob("iter_*") if p.is_dir() and re.fullmatch(r"iter_\d+", p.name)]
    if (path / "release").is_dir() and not found:
        return path / "release"
    return max(found, key=lambda p: int(p.name[5:]), default=None)


def find_run(path: Path, iteration: int | None) -> Run:
    """Find the ranks' files from a run's folder, an iteration's, a rank's, or a file in it.

    Raises:
        FormatError: if there are none.
    """
    if path.is_file():
        path = path.parent
    if Grid.numbers([path.resolve().name]) and not has_ranks(path):
        path = path.resolve().parent
    data = path if has_ranks(path) else iteration_folder(path, iteration)
    if data is None or not has_ranks(data):
        raise FormatError("there are no mp_rank_* folders", where=data or path, hint="name the run's folder")
    if iteration is not None and data == path and path.name != f"iter_{iteration:07d}":
        raise UsageError(f"{path.name} is not iteration {iteration}", hint="name the run's folder")
    root = data.parent if (data.parent / TRACKER).is_file() or data != path else data
    files = rank_folders(data)
    if not files:
        raise PlanError("there are no rank folders with a checkpoint", where=data)
    return Run(root, data, files)
