"""Find the folder that holds weights inside the one that a user names: a run's, with a folder for each step.

Names: Hugging Face's Trainer and ms-swift (``checkpoint-10``), torchtitan (``checkpoint/step-10``), OLMo-core
(``step10/model_and_optim``), torchtune (``epoch_0``, ``dist_epoch_0``), nemo-automodel
(``epoch_0_step_9/model``), NeMo 2 (``weights``), litgpt (``final``, ``step-00000100``), verl
(``global_step_10/actor``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ckptconv.errors import UsageError
from ckptconv.places.places import is_remote
from ckptconv.records import dataclass

__all__ = ["FINAL", "Found", "find_weights", "numbers", "with_models"]

_NUMBER: Final = re.compile(
    r"(?:^|(?<=[-_. ]))(?:(?P<epoch>epoch|ep)|(?P<step>global_?step|steps?|iter(?:ation)?|ba|batch)"
    r"|checkpoint|ckpt|save)[-_=]?(?P<number>\d{1,15})(?![0-9A-Za-z])"
)
# Where weights lie in a save, the likeliest first; a policy before its critic.
_INSIDE: Final = (
    *("model_and_optim", "model", "weights", "dist_ckpt", "actor", "checkpoint", "checkpoints"),
    *("ckpt", "pytorch_model_fsdp_0", "consolidated", "latest", "critic"),
)
FINAL: Final = "final"
"""The folder of the save a run ends with: litgpt 0.5, ``pretrain.py`` and ``finetune/full.py``."""

_MODELS: Final = ("huggingface", "tokenizer", "context/nemo_tokenizer")
_DEPTH: Final = 4


@dataclass(frozen=True, slots=True)
class Found:
    """Hold where the weights are, the folders on the way to them, nearest last, and what is to be said."""

    path: Path
    near: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def numbers(name: str) -> tuple[int, int] | None:
    """Return the epoch and the step that a save's name says; without a step the number that is there.

    The epoch is 0 where a name says only one number. None if it names no save.
    """
    epoch, step, other = None, None, None
    for match in _NUMBER.finditer(name):
        if match["step"]:
            step = int(match["number"])
        elif match["epoch"]:
            epoch = int(match["number"])
        else:
            other = int(match["number"])
    known = [n for n in (step, other) if n is not None]
    if known:
        return epoch or 0, known[0]
    return None if epoch is None else (0, epoch)


def _saves_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the folders of saves in a run's folder, by step, oldest first."""
    found = [(n, p) for p in folder.iterdir() if (n := numbers(p.name)) is not None and p.is_dir()]
    return [(order[1], p) for order, p in sorted(found)]


def find_weights(path: Path, known: Callable[[Path], bool]) -> Found | None:
    """Find what a reader knows in a folder that none does: in a run, the newest save that holds weights.

    Args:
        path: What the user named.
        known: Whether a reader recognises a path.

    Raises:
        UsageError: if several files could be meant.
    """
    return _find(path, known, _DEPTH)


def _find(path: Path, known: Callable[[Path], bool], depth: int) -> Found | None:
    if depth == 0 or not path.is_dir():
        return None
    saves = _saves_in(path)
    last = (f"{FINAL} is what the run ended with, after {len(saves)} saves",) if saves else ()
    if (found := _through(path, path / FINAL, known, depth, last)) is not None:
        return found
    skipped: list[str] = []
    for _, folder in reversed(saves):
        more = (*((f"{folder.name} is the newest of {len(saves)}",) if len(saves) > 1 else ()),)
        more = (*(f"{name} holds no weights" for name in skipped), *more)
        if (found := _through(path, folder, known, depth, more)) is not None:
            return found
        skipped.append(folder.name)
    for name in _INSIDE:
        if (found := _through(path, path / name, known, depth, ())) is not None:
            return found
    return _file(path, known)


def _through(
    path: Path,
    inner: Path,
    known: Callable[[Path], bool],
    depth: int,
    notes: tuple[str, ...],
) -> Found | None:
    if not inner.is_dir():
        return None
    if known(inner):
        return Found(inner, (path,), notes)
    found = _find(inner, known, depth - 1)
    return None if found is None else Found(found.path, (path, *found.near), (*notes, *found.notes))


def _file(path: Path, known: Callable[[Path], bool]) -> Found | None:
    """Return the one file of weights in a folder; an adapter lies beside the model it was added to.

    torchtune 0.6 leaves both (``training/checkpointing/_checkpointer.py``).
    """
    files = list(_weight_files(path, known))
    files = [f for f in files if not f.name.startswith("adapter_model.")] or files
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

    verl 0.9 has ``huggingface`` in a save's folder, up to two above the weights, Megatron-Bridge 0.6
    ``tokenizer`` in the iteration's, NeMo 2.3 ``context/nemo_tokenizer`` beside the weights.

    Args:
        folders: The folders on the way to the weights.
        data: The folder of the weights.
    """
    above = () if is_remote(data) else (data, data.parent, data.parent.parent)
    inside = [p for f in (*folders, *above) for name in _MODELS if (p := f / name).is_dir()]
    return tuple(dict.fromkeys((*folders, *inside)))
