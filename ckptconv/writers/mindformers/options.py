"""Say what may be asked of a MindFormers checkpoint that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ckptconv.plans.options import Choice, Paths, Switch, Text, option
from ckptconv.records import dataclass

__all__ = ["MindFormersTarget"]

_PANEL = "MindSpore and MindFormers"


@dataclass(frozen=True, slots=True)
class MindFormersTarget:
    """Own names, packing and cut of what is written."""

    format: Literal["ckpt", "safetensors"] | None = option(
        Choice(("ckpt", "safetensors")), "Container of the weights.", panel="What is written", common=True
    )
    strategy: Path | None = option(
        Paths("FILE_OR_DIR"),
        "Cut the model over ranks as these strategy files say.",
        panel=_PANEL,
    )
    like: Path | None = option(
        Paths("CKPT"),
        "Take names, packing and dtypes from this checkpoint.",
        panel=_PANEL,
        common=True,
    )
    dialect: str | None = option(
        Text("NAME"),
        "Names: legacy, glm, core, gpt2, bloom; those of the family by default.",
        panel=_PANEL,
    )
    experts: Literal["sequential", "grouped"] | None = option(
        Choice(("sequential", "grouped")),
        "Core: one tensor an expert, or all in one; legacy: grouped is use_gmm.",
        panel=_PANEL,
    )
    mla: Literal["fused", "split"] | None = option(
        Choice(("fused", "split")), "Latent projections, fused or split.", panel=_PANEL
    )
    qkv_concat: bool = option(
        Switch(), "Write query, key, value and gate, up fused.", default=False, panel=_PANEL
    )
    qkv_layout: Literal["grouped", "contiguous"] | None = option(
        Choice(("grouped", "contiguous")),
        "A fused query, key and value: by query group in turns, or one after the other.",
        panel=_PANEL,
    )
    mlp_layout: Literal["interleaved", "contiguous"] | None = option(
        Choice(("interleaved", "contiguous")),
        "A fused gate and up projection: row by row in turns, or one after the other.",
        panel=_PANEL,
    )

    @property
    def may_keep(self) -> bool:
        """Whether a source of MindSpore may keep its names and packing."""
        asked = (self.like, self.dialect, self.experts, self.mla)
        return not self.qkv_concat and all(a is None for a in asked)
