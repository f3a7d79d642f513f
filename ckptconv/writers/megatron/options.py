"""Say what may be asked of Megatron's targets: ranks, and the arguments of ``torch_dist``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ckptconv.plans.options import Choice, Count, Paths, Switch, Text, Whole, option
from ckptconv.records import dataclass

__all__ = ["Grids", "MegatronTarget"]

PANEL = "Layout of the target"


def _size(text: str, *, common: bool = True) -> Any:
    return option(Count(1), text, panel=PANEL, common=common)


@dataclass(frozen=True)
class Grids:
    """Own what both of Megatron's formats take: parallel sizes, names, and a checkpoint to be like."""

    tp: int | None = _size("Tensor parallel size.")
    pp: int | None = _size("Pipeline parallel size.")
    vpp: int | None = _size("Virtual pipeline chunks a stage.", common=False)
    ep: int | None = _size("Expert parallel size.")
    etp: int | None = _size("Expert tensor parallel size; that of --tp by default.", common=False)
    dialect: str | None = option(
        Text("NAME"),
        "Names: core-te, core-local, legacy, mindspeed, ...",
        panel=PANEL,
        common=True,
    )
    vocab_divisible: int | None = option(
        Count(1),
        "Pad the vocabulary to a multiple of this times --tp, as the target does.",
        "--make-vocab-size-divisible-by",
        panel=PANEL,
    )
    like: Path | None = option(
        Paths("RUN"),
        "Take layout, names and dtypes from this run.",
        panel=PANEL,
        common=True,
    )


@dataclass(frozen=True)
class MegatronTarget(Grids):
    """Own what ranks may be cut by."""

    layers_per_stage: tuple[int, ...] = option(
        Whole(), "Layers of each pipeline stage (of each chunk with --vpp).", default=(), panel=PANEL
    )
    noop_layers: tuple[int, ...] = option(
        Whole(), "Positions where a layer does nothing and has no weights.", default=(), panel=PANEL
    )
    schedule: Literal["dualpipev"] | None = option(
        Choice(("dualpipev",)), "Fold the pipeline as dualpipev does.", panel=PANEL
    )
    experts: Literal["sequential", "grouped", "legacy-grouped"] | None = option(
        Choice(("sequential", "grouped", "legacy-grouped")),
        "One module an expert, one tensor an expert, or all in one tensor.",
        panel=PANEL,
    )
    mla: Literal["fused", "split"] | None = option(
        Choice(("fused", "split")), "Latent projections, fused or split.", panel=PANEL
    )
    extend_ep: bool = option(
        Switch(),
        "Spread experts over tensor parallel ranks as well.",
        "--moe-tp-extend-ep/--no-moe-tp-extend-ep",
        default=False,
        panel=PANEL,
    )
