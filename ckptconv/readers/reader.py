"""Define a reader: how a producer's checkpoints are recognised and opened, and what may be said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptconv.plans.checkpoint import Checkpoint, Weights
from ckptconv.plans.options import Choice, Count, NoOptions, Option, Text, declared, option
from ckptconv.records import dataclass

__all__ = [
    "PANEL",
    "Parallel",
    "Reader",
    "Save",
    "Weighed",
    "Which",
    "no_saves",
    "nothing_lacks",
    "options_of",
]

PANEL = "What is read"


@dataclass(frozen=True, slots=True)
class Save:
    """Name one save of a run.

    Attributes:
        step: Its step or iteration (an epoch where it has no step); None for a tag without a number.
        name: What it is called, as ``--step`` takes it: the folder's name, or that of a file's save.
        path: What is opened: its folder or file, or where the reader tells its saves apart itself, the run's.
        key: The reader's own ``step`` for it, where ``path`` holds several.
        files: Its files, where they lie among those of others.
        epoch: Its epoch, where the name says both.
        lacking: Why its reader knows it not to be whole, by names alone.
    """

    step: int | None
    name: str
    path: Path
    key: str | None = None
    files: tuple[Path, ...] = ()
    epoch: int = 0
    lacking: str | None = None


def no_saves(path: Path) -> Iterable[Save]:
    """List no saves: those of this format are numbered folders, which are found for every format."""
    return ()


def nothing_lacks(path: Path) -> str | None:
    """Say nothing of what lacks: opening tells."""
    return None


@dataclass(frozen=True, slots=True)
class Reader:
    """Tie a producer's name to the functions that recognise and open its checkpoints.

    Attributes:
        name: The producer.
        recognise: Whether a path looks like one of its checkpoints; cheap, looks at names only.
        open: Read the metadata; takes the path and an instance of ``options``.
        options: A frozen dataclass whose fields are made by `ckptconv.plans.options.option`: what a user may
            say about such a checkpoint. Flags and checks follow from it.
        saves: Lists the saves in a run's folder that are not folders named by a number: tags of any name, or
            files among those of other saves.
        lacking: Says of a save it recognises which part is not there, by names alone; None if none is known.
    """

    name: str
    recognise: Callable[[Path], bool]
    open: Callable[[Path, Any], Checkpoint]
    options: type = NoOptions
    saves: Callable[[Path], Iterable[Save]] = no_saves
    lacking: Callable[[Path], str | None] = nothing_lacks


@dataclass(frozen=True)
class Weighed:
    """Own ``--weights``."""

    weights: Weights | None = option(
        Choice(("master", "model")),
        "fp32 masters, or the 16-bit weights of training.",
        panel=PANEL,
        common=True,
    )


@dataclass(frozen=True)
class Which:
    """Own ``--step``, which every run has: it is settled before a reader opens anything."""

    step: str | None = option(
        Text("STEP"),
        "Read this save, not the newest.",
        "--step",
        "--iteration",
        "--tag",
        panel=PANEL,
        common=True,
    )


def options_of(reader: Reader) -> dict[str, Option]:
    """Return what may be said of a reader's checkpoints: its own options, and which step."""
    return {**declared(Which), **declared(reader.options)}


def _size(what: str) -> Any:
    text = f"{what} parallel size of the source; checked, needed only where the checkpoint does not say."
    return option(Count(1), text, panel=PANEL)


@dataclass(frozen=True)
class Parallel:
    """Own the parallel sizes a checkpoint of ranks may be said to have."""

    tp: int | None = _size("Tensor")
    pp: int | None = _size("Pipeline")
    vpp: int | None = _size("Virtual pipeline")
    ep: int | None = _size("Expert")
    etp: int | None = _size("Expert tensor")

    @property
    def sizes(self) -> Mapping[str, int]:
        """The sizes that are said."""
        found = {n: getattr(self, n) for n in ("tp", "pp", "vpp", "ep", "etp")}
        return {n: v for n, v in found.items() if v is not None}
