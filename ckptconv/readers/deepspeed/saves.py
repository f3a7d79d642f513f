"""List the tags of a DeepSpeed run, and tell by names what one lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ckptconv.errors import CkptconvError
from ckptconv.readers.deepspeed.find import find_run, is_tag, sort_files, tags
from ckptconv.readers.reader import Save
from ckptconv.readers.runs import numbers

__all__ = ["lacking", "saves"]


def saves(path: Path) -> Iterator[Save]:
    """Yield the tags in a run's folder, whatever they are called."""
    if not path.is_dir() or is_tag(path):
        return
    for tag in tags(path):
        numbered = numbers(tag.name)
        yield Save(None if numbered is None else numbered[1], tag.name, tag)


def lacking(path: Path) -> str | None:
    """Say which files a save lacks."""
    try:
        files = sort_files(find_run(path).tag)
    except CkptconvError as e:
        return e.message
    kinds = (("model states", files.model), ("optimizer states", files.optim))
    for what, ranks in kinds:
        if (gone := _gap(ranks)) is not None:
            return f"the {what} of model-parallel rank {gone} are not there"
        most = max((max(held) for held in ranks.values()), default=0)
        for rank, held in ranks.items():
            absent = next((n for n in range(most + 1) if n not in held), None)
            if absent is not None and not (what == "model states" and most == 0):
                return f"the {what} of data-parallel rank {absent} (model-parallel {rank}) are not there"
    if files.universal is None and not files.model and not files.layers:
        return "there are no model states"
    return None


def _gap(ranks: Mapping[int, object]) -> int | None:
    """Return the first number that is missing among those of ranks."""
    return next((n for n in range(max(ranks, default=-1)) if n not in ranks), None)
