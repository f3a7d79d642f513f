"""Find the iteration of a run and the files of its ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from ckptconv.errors import FormatError, PlanError
from ckptconv.parallel import Grid
from ckptconv.places.regular import read_head
from ckptconv.readers.reader import Save
from ckptconv.records import dataclass

__all__ = ["Run", "find_run", "iteration_folder", "lacking", "rank_folders", "recognise", "saves"]

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


def iteration_folder(path: Path) -> Path | None:
    """Return the folder of the newest iteration; None if this is no run's folder.

    Raises:
        FormatError: if the tracker names none that is there.
    """
    tracker = path / TRACKER
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


def recognise(path: Path) -> bool:
    """Whether a path is a save of ranks, or a run of them."""
    if path.is_file():
        return path.name in ("model_optim_rng.pt", "model_rng.pt")
    if not path.is_dir():
        return False
    if has_ranks(path) or (path / "model_optim_rng.pt").is_file():
        return True
    try:
        folder = iteration_folder(path)
    except FormatError:
        return True
    return folder is not None and has_ranks(folder)


def find_run(path: Path) -> Run:
    """Find the ranks' files from a run's folder, an iteration's, a rank's, or a file in it.

    Raises:
        FormatError: if there are none.
    """
    if path.is_file():
        path = path.parent
    if Grid.numbers([path.resolve().name]) and not has_ranks(path):
        path = path.resolve().parent
    data = path if has_ranks(path) else iteration_folder(path)
    if data is None or not has_ranks(data):
        raise FormatError("there are no mp_rank_* folders", where=data or path, hint="name the run's folder")
    root = data.parent if (data.parent / TRACKER).is_file() or data != path else data
    files = rank_folders(data)
    if not files:
        raise PlanError("there are no rank folders with a checkpoint", where=data)
    return Run(root, data, files)


def saves(path: Path) -> Iterator[Save]:
    """Yield the save of converted weights that has no iteration: ``release``."""
    if has_ranks(path / "release"):
        yield Save(None, "release", path / "release")


def lacking(path: Path) -> str | None:
    """Say which rank's folder or file is not there: every tensor, pipeline and expert rank saves."""
    folder = path if has_ranks(path) else iteration_folder(path)
    if folder is None:
        return None
    try:
        names = list(rank_folders(folder))
    except FormatError as e:
        return e.message
    found = set(Grid.numbers(names).values())
    if len({len(n) for n in found}) != 1:
        return None
    absent = min((e - found for e in _expected(found) if found <= e), key=len, default=set())
    return f"{_called(min(names), min(absent))} is not there" if absent else None


def _expected(found: set[tuple[int, ...]]) -> Iterator[set[tuple[int, ...]]]:
    """Yield the ranks a save may have: all, or those of expert ranks that go over tensor ranks.

    With a smaller expert tensor parallel size (``etp``) rank r of a stage is tensor rank ``r % tp`` and
    expert rank ``r // etp % ep`` (megatron-core 0.16.1, ``parallel_state.py``).
    """
    sizes = [max(n[i] for n in found) + 1 for i in range(len(next(iter(found))))]
    yield set(product(*map(range, sizes)))
    if len(sizes) == 1:
        return
    tp, *middle, ep = sizes
    for etp in range(1, tp):
        pairs = {(r % tp, r // etp % ep) for r in range(tp * ep * etp)}
        yield {(t, *m, e) for t, e in pairs for m in product(*map(range, middle))}


def _called(other: str, rank: tuple[int, ...]) -> str:
    """Return the name of a rank's folder, as another one is called."""
    rest = iter(rank)
    return re.sub(r"\d+", lambda m: f"{next(rest):0{len(m[0])}d}", other)
