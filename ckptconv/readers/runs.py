"""Find the folder that holds weights inside the one that a user names: a run's, with a folder for each step.

Names: Hugging Face's Trainer and ms-swift (``checkpoint-10``), torchtitan (``checkpoint/step-10``), OLMo-core
(``step10/model_and_optim``), torchtune (``epoch_0``, ``dist_epoch_0``), nemo-automodel
(``epoch_0_step_9/model``), NeMo 2 (``weights``), litgpt (``final``, ``step-00000100``), verl
(``global_step_10/actor``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptconv.errors import UsageError
from ckptconv.places.places import is_remote

__all__ = ["Found", "Save", "find_weights", "saves_in", "with_models"]

_NUMBERED: Final = re.compile(
    r"(?:dist_)?(?:checkpoint|global_step|step|iter|epoch|ep)[-_=]?(\d+)(?:[-_](?:step|ba)[-_=]?(\d+))?(?:[-_].*)?"
)
# Where weights lie in a save, the likeliest first; a policy before its critic.
_INSIDE: Final = (
    *("model_and_optim", "model", "weights", "dist_ckpt", "actor", "final", "checkpoint", "checkpoints"),
    *("ckpt", "pytorch_model_fsdp_0", "consolidated", "latest", "critic"),
)
_DEPTH: Final = 4


@dataclass(frozen=True, slots=True)
class Save:
    """Name one save of a run: its step (an epoch where it has no step), and its folder."""

    step: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Found:
    """Hold where the weights are, the folders on the way to them, nearest last, and what is to be said."""

    path: Path
    near: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def saves_in(folder: Path) -> list[Save]:
    """Return the saves whose folders lie in a run's folder, oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NUMBERED.fullmatch(path.name)
        if match is not None and path.is_dir():
            found.append(((int(match[1]), int(match[2] or 0)), path))
    return [Save(order[1] or order[0], path) for order, path in sorted(found)]


def find_weights(path: Path, known: Callable[[Path], bool], step: str | None = None) -> Found | None:
    """Find what a reader knows in a folder that none does.

    Args:
        path: What the user named.
        known: Whether a reader recognises a path.
        step: The step that is wanted, instead of the newest.

    Raises:
        UsageError: if there is no such step, or several files could be meant.
    """
    return _find(path, known, step, _DEPTH)


def _find(path: Path, known: Callable[[Path], bool], step: str | None, depth: int) -> Found | None:
    if depth == 0 or not path.is_dir():
        return None
    saves = saves_in(path)
    if saves and step is not None:
        asked = re.sub(r"\D+", "", step)
        chosen = [s for s in saves if s.folder.name == step or (asked and s.step == int(asked))]
        if not chosen:
            there = ", ".join(str(s.step) for s in saves[-12:])
            raise UsageError(f"there is no step {step}", where=path, hint=f"steps here: {there}")
        return _through(path, chosen[-1].folder, known, None, depth, ())
    skipped: list[str] = []
    for save in reversed(saves):
        more = (*((f"{save.folder.name} is the newest of {len(saves)}",) if len(saves) > 1 else ()),)
        more = (*(f"{name} holds no weights" for name in skipped), *more)
        if (found := _through(path, save.folder, known, None, depth, more)) is not None:
            return found
        skipped.append(save.folder.name)
    for name in _INSIDE:
        if (found := _through(path, path / name, known, step, depth, ())) is not None:
            return found
    return _file(path, known)


def _through(
    path: Path,
    inner: Path,
    known: Callable[[Path], bool],
    step: str | None,
    depth: int,
    notes: tuple[str, ...],
) -> Found | None:
    if not inner.is_dir():
        return None
    if known(inner):
        return Found(inner, (path,), notes)
    found = _find(inner, known, step, depth - 1)
    return None if found is None else Found(found.path, (path, *found.near), (*notes, *found.notes))


def _file(path: Path, known: Callable[[Path], bool]) -> Found | None:
    """Return the one file of weights in a folder."""
    files = list(_weight_files(path, known))
    if len(files) > 1:
        raise UsageError(
            f"{len(files)} files of weights are here: {', '.join(f.name for f in files[:6])}",
            where=path,
            hint="name one of them",
        )
    return Found(files[0]) if files else None


def _weight_files(path: Path, known: Callable[[Path], bool]) -> Iterator[Path]:
    for file in sorted(path.iterdir()):
        if (
            file.suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".nemo")
            and file.is_file()
            and known(file)
        ):
            yield file


def with_models(folders: Sequence[Path], data: Path) -> tuple[Path, ...]:
    """Return folders, and those in or beside them where a library keeps config.json and tokenizer.

    verl 0.9 has ``huggingface`` in a save's folder, up to two above the weights.

    Args:
        folders: The folders on the way to the weights.
        data: The folder of the weights.
    """
    above = () if is_remote(data) else (data, data.parent, data.parent.parent)
    inside = [p for f in (*folders, *above) if (p := f / "huggingface").is_dir()]
    return tuple(dict.fromkeys((*folders, *inside)))
