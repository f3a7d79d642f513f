"""Define a reader: how a producer's checkpoints are recognised and opened, and what may be said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.plans.checkpoint import Checkpoint, Weights
from ckptconv.plans.options import Choice, Count, Kind, NoOptions, Text, option

__all__ = ["Parallel", "Reader", "Weighed", "step_option"]

PANEL = "What is read"


@dataclass(frozen=True, slots=True)
class Reader:
    """Tie a producer's name to the functions that recognise and open its checkpoints.

    Attributes:
        name: The producer.
        recognise: Whether a path looks like one of its checkpoints; cheap, looks at names only.
        open: Read the metadata; takes the path and an instance of ``options``.
        options: A frozen dataclass whose fields are made by `ckptconv.plans.options.option`: what a user may
            say about such a checkpoint. Flags and checks follow from it.
    """

    name: str
    recognise: Callable[[Path], bool]
    open: Callable[[Path, Any], Checkpoint]
    options: type = NoOptions


@dataclass(frozen=True)
class Weighed:
    """Own ``--weights``."""

    weights: Weights | None = option(
        Choice(("master", "model")),
        "fp32 masters, or the 16-bit weights of training.",
        panel=PANEL,
        common=True,
    )


def step_option(kind: Kind | None = None) -> Any:
    """Declare the choice of a step, tag or iteration."""
    return option(
        kind or Text("STEP"),
        "What to read instead of the newest.",
        "--step",
        "--iteration",
        "--tag",
        panel=PANEL,
        common=True,
    )


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
