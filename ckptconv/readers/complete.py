"""Say which saves of a run are whole, by their producer's marks, their parts, and the ends of their files.

Markers: Megatron-LM, Megatron-Bridge, verl and MindFormers write ``latest_checkpointed_iteration.txt`` after
a save, DeepSpeed ``latest`` (0.19.8, ``runtime/engine.py``, ``save_checkpoint``); torch's DCP ``.metadata``
(2.13, ``filesystem.py``, ``finish``); Hugging Face's Trainer ``trainer_state.json`` (transformers 5.12,
``trainer.py``, ``_save_checkpoint``, after the ``training_args.bin`` of the model); NeMo 2 takes away
``NAME-unfinished`` (2.4, ``nemo/lightning/pytorch/callbacks/model_checkpoint.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from ckptconv.containers.safetensors import read_header
from ckptconv.errors import CkptconvError
from ckptconv.places.places import is_remote
from ckptconv.places.regular import read_head
from ckptconv.places.unfinished import refuse_unfinished
from ckptconv.readers.reader import Reader, Save
from ckptconv.readers.runs import numbers
from ckptconv.readers.saves import Run, find_known

__all__ = ["files_of", "lacking"]

_TRACKER: Final = "latest_checkpointed_iteration.txt"
_LATEST: Final = "latest"
_STATE: Final = "trainer_state.json"
_ARCHIVES: Final = (".pt", ".pth", ".bin", ".ckpt")
_ZIP, _ZIP_END, _END_BYTES = b"PK\x03\x04", b"PK\x05\x06", 22
_LOADERS: Final = ("data.pt", "dataloader.pt")  # what a data loader keeps may be nothing
_MOST_FILES: Final = 20_000


def lacking(save: Save, run: Run, readers: Iterable[Reader]) -> str | None:
    """Say why a save is not whole; None if it is, as far as names, markers and the ends of files tell."""
    every = tuple(readers)
    if save.lacking is not None:
        return save.lacking
    if save.path.with_name(f"{save.path.name}-unfinished").exists():
        return f"{save.path.name}-unfinished is beside it: NeMo has not finished it"
    try:
        refuse_unfinished(save.path)
    except CkptconvError as e:
        return e.message
    data = save.path if save.key is not None else find_known(save.path, every)
    if data is None:
        return _nothing(save.path)
    reader = None if save.key is not None else next((r for r in every if r.recognise(data)), None)
    if reader is not None and (text := reader.lacking(data)) is not None:
        return text
    return _after(save, run) or _unmarked(save, run) or next(_cut_off(save.files or (data,)), None)


def _nothing(folder: Path) -> str:
    """Say of a folder that no reader knows what it lacks."""
    if any(folder.rglob("*.distcp")):
        return "there is no .metadata, which is written last"
    if (folder / "adapter_config.json").is_file():
        return "an adapter alone is here, and no model: give it with --adapter"
    return "no weights are there yet"


def _after(save: Save, run: Run) -> str | None:
    """Say that the run's own note of its newest save is of an older one."""
    if save.step is None or save.path == run.folder:
        return None
    for name in (_TRACKER, _LATEST):
        newest = _noted(run.folder / name)
        if newest is not None and save.step > newest and any(s.step == newest for s in run.saves):
            return f"the run's file {name} names {newest}: it is written when a save is done"
    return None


def _noted(file: Path) -> int | None:
    """Return the step that a run's file says was saved last."""
    if not file.is_file():
        return None
    text = read_head(file, 256).decode(errors="replace").strip()
    numbered = numbers(text)
    return int(text) if text.isdecimal() and len(text) < 16 else numbered and numbered[1]


def _unmarked(save: Save, run: Run) -> str | None:
    """Say that a Trainer has not written its state yet, which it does last."""
    folder = save.path
    if not folder.name.startswith("checkpoint-") or not folder.is_dir() or (folder / _STATE).is_file():
        return None
    others = any((s.path / _STATE).is_file() for s in run.saves if s is not save)
    if others or (folder / "training_args.bin").is_file():
        return f"there is no {_STATE}, which a Trainer writes last"
    return None


def files_of(*paths: Path) -> Iterator[Path]:
    """Yield files, and those in folders."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        if is_remote(path):
            yield from (p for p in path.rglob("*") if p.is_file())
            continue
        for folder, _, names in os.walk(path):
            yield from (Path(folder, n) for n in sorted(names))


def _cut_off(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the files that end too early, or are empty."""
    for file in islice(files_of(*paths), _MOST_FILES):
        if file.suffix not in (*_ARCHIVES, ".safetensors") or is_remote(file) or not file.is_file():
            continue
        size = file.stat().st_size
        if size == 0 and file.name not in _LOADERS:
            yield f"{file.name} is empty"
        elif file.suffix == ".safetensors":
            try:
                read_header(file)
            except (CkptconvError, OSError):
                yield f"{file.name} is cut off, or damaged"
        elif _is_open_archive(file, size):
            yield f"{file.name} is cut off: its archive has no end"


def _is_open_archive(path: Path, size: int) -> bool:
    """Whether a file begins as an archive of ``torch.save``, but does not end as one."""
    with open(path, "rb") as file:
        file.seek(max(0, size - _END_BYTES))
        if file.read(4) == _ZIP_END:
            return False
        file.seek(0)
        return file.read(4) == _ZIP
