"""List the saves of a run, whatever wrote it, and find the one a step, an iteration or a tag names.

Names: Hugging Face's Trainer and ms-swift (``checkpoint-10``), Megatron (``iter_0000010``, ``release``),
DeepSpeed (``global_step10``, tags of any name), torchtitan (``checkpoint/step-10``), OLMo-core (``step10``),
torchtune (``epoch_0``), nemo-automodel (``epoch_0_step_9``), NeMo 2 (``NAME--val_loss=2.1-step=9``, from 2.0,
``nemo/utils/callbacks``), Lightning (``epoch=1-step=9.ckpt``), Composer (``ep0-ba10``), litgpt
(``step-00000100``), verl (``global_step_10``), MindFormers (``iteration_00000010``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ckptconv.errors import UsageError
from ckptconv.places.inside import is_inside
from ckptconv.plans.options import near
from ckptconv.readers.reader import Reader, Save
from ckptconv.readers.runs import FINAL, find_weights, numbers
from ckptconv.records import dataclass

__all__ = ["Run", "find_known", "find_save", "has_steps", "list_saves", "numbered"]

_FILES: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".nemo")
_BESIDE: Final = re.compile(r"(?:opt|optim|optimizer|rng|random|scheduler|scaler|recipe|trainer)[-_.].*")
# Folders of a run that hold its saves.
_INSIDE: Final = ("checkpoints", "checkpoint", "ckpt", "ckpts", "weights", "output", "outputs", "results")
_DEPTH: Final = 3
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Run:
    """Hold the saves of a run.

    Attributes:
        folder: The folder they lie in: the one a user named, or one inside.
        saves: The saves, newest last; those without a number come first, but for the one a run ends with.
    """

    folder: Path
    saves: tuple[Save, ...]


def list_saves(path: Path, readers: Iterable[Reader]) -> Run:
    """List the saves in what a user names, by names alone.

    A save that is named itself is a run of one.

    Raises:
        UsageError: if the runs of several folders could be meant.
    """
    every = tuple(readers)
    run = _run(path, every, _DEPTH)
    if run is not None:
        return run
    if path.exists() and find_known(path, every) is not None:
        said = numbers(path.name)
        return Run(path, (Save(None if said is None else said[1], path.name, path),))
    return Run(path, ())


def has_steps(path: Path, readers: Iterable[Reader]) -> bool:
    """Whether a path is a run, in which a step is chosen: not one of its saves, nor a model by itself."""
    inside = [s for s in list_saves(path, readers).saves if s.path != path or s.key is not None]
    return len(inside) > 1 or (bool(inside) and numbers(path.name) is None)


def find_known(path: Path, readers: Sequence[Reader]) -> Path | None:
    """Return what a reader opens in a save: the path itself, or the folder of the weights inside."""

    def known(inner: Path) -> bool:
        return any(r.recognise(inner) for r in readers)

    if known(path):
        return path
    try:
        found = find_weights(path, known)
    except UsageError:
        return path  # several files could be meant: opening it says so
    return None if found is None else found.path


def _run(path: Path, readers: Sequence[Reader], depth: int) -> Run | None:
    if depth == 0 or not path.is_dir():
        return None
    if found := _saves(path, readers):
        return Run(path, found)
    for name in _INSIDE:
        if (inner := _run(path / name, readers, depth - 1)) is not None:
            return inner
    if any(r.recognise(path) for r in readers):
        return None
    inside = [p for p in sorted(path.iterdir()) if p.is_dir() and p.name not in _INSIDE]
    runs = [run for p in inside if (run := _run(p, readers, 1)) is not None]
    if len(runs) > 1:
        names = ", ".join(r.folder.name for r in runs[:_SHOWN])
        raise UsageError(f"{len(runs)} runs are here: {names}", where=path, hint="name one of them")
    return runs[0] if runs else None


def _saves(path: Path, readers: Sequence[Reader]) -> tuple[Save, ...]:
    """Return the saves that lie in one folder, oldest first."""
    own = [save for reader in readers for save in reader.saves(path)]
    found = {save.name: save for save in own}
    children = sorted(path.iterdir())
    for child in children:
        if child.name in found or not child.is_dir():
            continue
        said = numbers(child.name)
        if child.name == FINAL and find_known(child, readers) is not None:
            found[child.name] = Save(None, child.name, child)
        if said is None and child.name.isdecimal() and find_known(child, readers) is not None:
            said = (0, int(child.name))
        if said is not None:
            found[child.name] = Save(said[1], child.name, child, epoch=said[0])
    if not any(save.files for save in own):
        found |= {save.name: save for save in _files(children)}
    return tuple(sorted(found.values(), key=_order))


def _files(paths: Iterable[Path]) -> Iterator[Save]:
    """Yield the files that hold a save each."""
    for path in paths:
        said = numbers(path.name)
        whole = path.suffix in _FILES and _BESIDE.fullmatch(path.name) is None
        if whole and said is not None and path.is_file():
            yield Save(said[1], path.name, path, epoch=said[0])


def _order(save: Save) -> tuple[int, int, int, str]:
    rank = 2 if save.name == FINAL else 0 if save.step is None else 1
    return rank, save.epoch, save.step or 0, save.name


def find_save(path: Path, step: str, readers: Iterable[Reader]) -> Save:
    """Return the save that a step, an iteration or a tag names.

    Raises:
        UsageError: if there is none, or several could be meant.
    """
    every = tuple(readers)
    run = list_saves(path, every)
    named = [s for s in run.saves if s.name == step]
    found = named or numbered(run.saves, step)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(s.name for s in found)
        raise UsageError(
            f"{len(found)} saves are of step {step}: {names}", where=path, hint="give --step the name of one"
        )
    if (inner := _inside(path, run, step)) is not None:
        return Save(None, step, inner)
    raise UsageError(
        f"there is no step {step}", where=path, hint=_there(run.saves, step, lambda p: find_known(p, every))
    )


def _number(step: str) -> int | None:
    """Return the number a user means: of ``10``, and of a name such as ``iter_0000010``."""
    if step.isdecimal() and len(step) < 16:
        return int(step)
    said = numbers(step)
    return None if said is None else said[1]


def numbered(saves: Sequence[Save], step: str) -> list[Save]:
    """Return the saves of a number; one whose name is only a longer one of another is that other."""
    number = _number(step)
    found = [s for s in saves if number is not None and s.step == number]
    shortest = min((s.name for s in found), key=len, default="")
    if all(s.name.startswith(shortest) for s in found):
        return [s for s in found if s.name == shortest]
    return found


def _inside(path: Path, run: Run, step: str) -> Path | None:
    """Return the folder of a tag, in a run's folder or in one of its saves, the newest first."""
    if not step or not path.is_dir() or not is_inside(step):
        return None
    folders = (run.folder, *(s.path for s in reversed(run.saves)))
    return next((f / step for f in folders if f.is_dir() and (f / step).is_dir()), None)


def _there(saves: Sequence[Save], step: str, known: Callable[[Path], Path | None]) -> str:
    """Say which steps there are, and the nearest ones."""
    there = [s for s in saves if s.key is not None or known(s.path) is not None]
    if not there:
        return "there are no others; name the run's folder"
    number = _number(step)
    counted = [s for s in there if s.step is not None]
    if number is not None and counted:
        close = sorted(counted, key=lambda s: abs((s.step or 0) - number))[:2]
        likely = [str(s.step) for s in sorted(close, key=_order)]
    else:
        likely = near(step, [s.name for s in there])
    more = f"{len(there) - _SHOWN} more, " if len(there) > _SHOWN else ""
    listed = more + ", ".join(s.name for s in there[-_SHOWN:])
    return (f"the nearest: {', '.join(dict.fromkeys(likely))}; " if likely else "") + f"steps here: {listed}"
