"""Find the reader for a path."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ckptconv.errors import FormatError
from ckptconv.places.places import forget
from ckptconv.places.unfinished import refuse_unfinished
from ckptconv.plans.checkpoint import Checkpoint, ReadOptions
from ckptconv.readers.reader import Reader
from ckptconv.readers.wrappers import unwrap

__all__ = ["open_checkpoint", "readers"]

# In the order they are asked; the first that recognises a path reads it.
_OWN = (
    "ckptconv.readers.verl",
    "ckptconv.readers.mindspore",
    "ckptconv.readers.torch_dist",
    "ckptconv.readers.megatron",
    "ckptconv.readers.deepspeed",
    "ckptconv.readers.dcp",
    "ckptconv.readers.huggingface",
    "ckptconv.readers.tensorflow",
    "ckptconv.readers.torch_file",
)


def readers() -> Iterator[Reader]:
    """Yield ckptconv's readers, then those of installed plug-ins (entry point ``ckptconv.readers``)."""
    for module in _OWN:
        yield import_module(module).READER
    from importlib.metadata import entry_points  # 25 ms, and seldom needed

    for point in entry_points(group="ckptconv.readers"):
        yield point.load()


def open_checkpoint(path: Path, options: ReadOptions) -> Checkpoint:
    """Open a checkpoint of any known producer; reads metadata only.

    Raises:
        FormatError: if nothing is there, or no reader recognises it.
    """
    forget()
    if not path.exists():
        raise FormatError("no such file or folder", where=path, hint="check the path")
    refuse_unfinished(path)
    for reader in readers():
        if reader.recognise(path):
            return unwrap(_open(reader, path, options))
    found = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else [path.name]
    raise FormatError(
        f"not a checkpoint ckptconv knows (found {', '.join(found) or 'nothing'})",
        where=path,
        hint="name the run's folder, the tag folder, or a weight file (.pt, .pth, .bin, .safetensors)",
    )


def _open(reader: Reader, path: Path, options: ReadOptions) -> Checkpoint:
    """Open a checkpoint; a structure no one expected is an error of the file, not of the program."""
    try:
        return reader.open(path, options)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as e:
        raise FormatError(
            f"the structure is not what {reader.name} writes ({type(e).__name__}: {e})",
            where=path,
            hint="if the checkpoint is sound, run again with --debug and report the traceback",
        ) from e
