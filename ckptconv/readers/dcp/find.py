"""Find the folder of a distributed checkpoint in what a user names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ckptconv.containers.dcp import METADATA
from ckptconv.errors import UsageError
from ckptconv.places.regular import read_bytes, read_head
from ckptconv.plans.checkpoint import Note

__all__ = ["NUMBERED", "OPTIMIZER", "find", "lacking", "lacking_files", "numbered", "recognise", "tracked"]

OPTIMIZER: Final = re.compile(r"opt|optim|optim(?:izer)?s?(?:_?(?:states?|state_dict|\d+))*")
NUMBERED: Final = re.compile(
    r"(?P<kind>.*?)[-_=]?(?P<number>\d+)(?:\.ckpt)?"
)  # Lightning: epoch=1-step=9.ckpt
_ACCELERATE: Final = re.compile(r"pytorch_model_fsdp_(\d+)")
_TRACKERS: Final = ("latest_checkpointed_iteration.txt", "latest")
_MAX_DEPTH: Final = 2
_DISTCP: Final = re.compile(rb"__\d{1,9}_\d{1,9}\.distcp")


def _is_dcp(folder: Path) -> bool:
    """Whether a folder holds a distributed checkpoint that is not Megatron's."""
    if not (folder / METADATA).is_file():
        return False
    marker = folder / "metadata.json"
    return not (marker.is_file() and b"sharded_backend" in read_head(marker, 4096))


def lacking_files(folder: Path) -> str | None:
    """Say which of the files that ``.metadata`` names are not there; it is written last."""
    if not (folder / METADATA).is_file():
        return f"there is no {METADATA}, which is written last"
    names = {m[0].decode() for m in _DISTCP.finditer(read_bytes(folder / METADATA))}
    absent = sorted(n for n in names if not (folder / n).is_file())
    return f"{len(absent)} of {len(names)} files are not there: {absent[0]}" if absent else None


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run by step or epoch."""
    return sorted(
        (int(m["number"]), p)
        for p in folder.iterdir()
        if (m := NUMBERED.fullmatch(p.name)) and p.is_dir() and not OPTIMIZER.fullmatch(p.name)
    )


def find(path: Path, depth: int = _MAX_DEPTH) -> tuple[Path, list[Note]] | None:
    """Find the folder with ``.metadata`` meant by a path, and say what was chosen.

    Raises:
        UsageError: if it holds several models and none is chosen.
    """
    if path.is_file():
        wanted = path.name == METADATA or path.suffix == ".distcp"
        return find(path.parent, 0) if wanted else None
    if not path.is_dir():
        return None
    if _is_dcp(path):
        return path, []
    if depth == 0:
        return None
    models = sorted(p for p in path.iterdir() if _ACCELERATE.fullmatch(p.name) and _is_dcp(p))
    if len(models) > 1:
        names = ", ".join(p.name for p in models)
        raise UsageError(f"{len(models)} models are saved here", where=path, hint=f"name one of {names}")
    if models:
        return models[0], []
    if (single := path / "model").is_dir() and _is_dcp(single):
        return single, []
    if any(path.glob("*.safetensors")):
        return None  # a finished model, beside the checkpoints of its training
    steps = [(n, found) for n, p in numbered(path) if (found := find(p, depth - 1)) is not None]
    if not steps:
        return None
    named = tracked(path)
    number, (folder, notes) = next((s for s in steps if s[0] == named), steps[-1])
    how = "named by the tracker file" if number == named else f"the newest of {len(steps)}"
    return folder, [Note("info", f"{folder.relative_to(path)} is {how} in {path}"), *notes]


def tracked(path: Path) -> int | None:
    """Return the step a run's tracker file names."""
    for name in _TRACKERS:
        if (path / name).is_file():
            found = re.search(r"\d+", read_head(path / name, 256).decode(errors="replace"))
            if found:
                return int(found[0])
    return None


def recognise(path: Path) -> bool:
    """Whether a path is a distributed checkpoint that is not Megatron's, or a run of them."""
    try:
        return find(path) is not None
    except UsageError:
        return True


def lacking(path: Path) -> str | None:
    """Say what keeps the newest save of a run from being read."""
    found = find(path)
    return None if found is None else lacking_files(found[0])
