"""Find the reader for a path, and open checkpoints with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ckptconv.collector import without_collector
from ckptconv.errors import FormatError, UsageError
from ckptconv.places.places import forget
from ckptconv.places.unfinished import JOURNAL, refuse_unfinished
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.options import flag_of, made, near
from ckptconv.plugins import Registry
from ckptconv.readers.flat_experts import unflattened
from ckptconv.readers.reader import Reader, options_of
from ckptconv.readers.runs import Found, find_weights, with_models
from ckptconv.readers.saves import find_save
from ckptconv.readers.sound import sound
from ckptconv.readers.spoken import spoken
from ckptconv.readers.wrappers import unwrap

__all__ = ["READERS", "find_reader", "open_checkpoint", "owners"]

# In the order they are asked; the first that recognises a path reads it.
_OWN = {
    name: f"ckptconv.readers.{'torch_file' if name == 'torch' else name}:READER"
    for name in (
        *("verl", "mindspore", "nemo", "torch_dist", "megatron", "deepspeed", "dcp"),
        *("sharded", "consolidated", "huggingface", "tensorflow", "torch"),
    )
}

READERS: Registry[Reader] = Registry("readers", _OWN, lambda: Reader)
"""ckptconv's readers, then those of installed plug-ins (entry point ``ckptconv.readers``)."""


def find_reader(path: Path) -> Reader:
    """Return the reader that recognises a path, or the newest save of the run it names.

    Raises:
        FormatError: if nothing is there, or no reader recognises it.
        UsageError: if several files of weights could be meant.
    """
    return _reader(_locate(path).path)


def _reader(path: Path) -> Reader:
    forget()
    if not path.exists():
        raise FormatError("no such file or folder", where=path, hint="check the path")
    refuse_unfinished(path)
    for reader in READERS:
        if reader.recognise(path):
            return reader
    if path.is_dir() and (path / JOURNAL).exists():
        raise FormatError(
            "interrupted: a conversion into this folder is not done",
            where=path,
            hint="run it again with --resume, or wait if it still runs",
        )
    found = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else [path.name]
    raise FormatError(
        f"not a checkpoint ckptconv knows (found {', '.join(found) or 'nothing'})",
        where=path,
        hint="name the run's folder, the tag folder, or a weight file (.pt, .pth, .bin, .safetensors)",
    )


@without_collector()
def open_checkpoint(
    path: Path, given: Mapping[str, object] = MappingProxyType({}), **internal: Any
) -> Checkpoint:
    """Open a checkpoint of any known producer; reads metadata only.

    Args:
        path: The checkpoint.
        given: What a user says about it, by the names of its reader's options.
        **internal: What the program itself knows; what the reader has no field for is left out.

    Raises:
        FormatError: if nothing is there, or no reader recognises it.
        UsageError: if something is said that this reader does not understand.
    """
    found, given, own = _chosen(path, given)
    reader = _reader(found.path)
    internal |= own
    opened = unflattened(unwrap(_open(reader, found.path, _options(reader, found.path, given, internal))))
    notes = tuple(Note("info", text) for text in found.notes)
    near = with_models((*reversed(found.near), *opened.near), opened.data)
    return sound(spoken(replace(opened, near=near, notes=(*notes, *opened.notes))), path)


def _chosen(
    path: Path, given: Mapping[str, object]
) -> tuple[Found, Mapping[str, object], Mapping[str, object]]:
    """Find the weights of the step that is asked for; return what else is said, and the reader's own choice.

    Raises:
        UsageError: if there is no such step, or several saves or files could be meant.
    """
    step = given.get("step")
    if step is None:
        return _locate(path), given, {}
    save = find_save(path, str(step), READERS)
    rest = {n: v for n, v in given.items() if n != "step"}
    if save.key is not None:
        return Found(save.path), rest, {"step": save.key}
    found = _locate(save.path)
    above = [p for p in save.path.parents if p == path or p.is_relative_to(path)]
    return replace(found, near=(*reversed(above), *found.near)), rest, {}


def _locate(path: Path) -> Found:
    """Find the weights in what a user names: a run's folder, or one of its saves.

    Raises:
        UsageError: if several files of weights could be meant.
    """
    if not path.is_dir():
        return Found(path)
    if any(r.recognise(path) for r in READERS):
        return Found(path)
    refuse_unfinished(path)
    found = find_weights(path, lambda p: any(r.recognise(p) for r in READERS))
    return found or Found(path)


def owners(name: str) -> list[str]:
    """Return the readers that understand an option."""
    return [r.name for r in READERS if name in options_of(r)]


def _options(
    reader: Reader, path: Path, given: Mapping[str, object], internal: Mapping[str, object]
) -> object:
    """Make the reader's options, and refuse what it does not own."""
    owned = options_of(reader)
    for name, value in given.items():
        if value is None or name in owned:
            continue
        others = owners(name)
        flag = next((flag_of(name, o) for r in READERS for n, o in options_of(r).items() if n == name), name)
        close = near(name, list(owned))
        more = f"; of this one: {', '.join(flag_of(n, owned[n]) for n in close or owned)}" if owned else ""
        raise UsageError(
            f"{flag} says nothing about a {reader.name} checkpoint",
            where=path,
            hint=f"leave it out: it is for checkpoints of {', '.join(others) or 'no reader'}{more}",
        )
    known = {f.name for f in fields(reader.options)}
    return made(reader.options, {**given, **{n: v for n, v in internal.items() if n in known}})


def _open(reader: Reader, path: Path, options: object) -> Checkpoint:
    """Open a checkpoint; a structure no one expected is an error of the file, not of the program."""
    try:
        return reader.open(path, options)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as e:
        raise FormatError(
            f"the structure is not what {reader.name} writes ({type(e).__name__}: {e})",
            where=path,
            hint="if the checkpoint is sound, run again with --debug and report the traceback",
        ) from e
