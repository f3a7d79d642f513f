"""Say what a user may say about a MindSpore or MindFormers checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ckptconv.plans.options import Choice, Paths, Switch, option
from ckptconv.readers.reader import Weighed
from ckptconv.records import dataclass

__all__ = ["MindSporeOptions"]

_PANEL = "MindSpore and MindFormers"


@dataclass(frozen=True)
class MindSporeOptions(Weighed):
    """Own what names and shapes of such a checkpoint do not tell.

    Attributes:
        step: Epoch and step of the save to read, where files of several lie together: ``1_100``.
        as_stored: Whether optimizer and training states are read as tensors too, for a checkpoint of
            MindSpore that is written again or compared; known to the program, not asked of a user.
    """

    yaml: Path | None = option(
        Paths("FILE"),
        "YAML of the run, if not beside the checkpoint: config.json is built from it.",
        panel=_PANEL,
    )
    strategy: Path | None = option(
        Paths("FILE_OR_DIR"), "Strategy files of the source's ranks, if not beside it.", panel=_PANEL
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
    check: bool = option(
        Switch(),
        "First compare MindSpore's files with the checksums they hold.",
        default=False,
        panel=_PANEL,
    )
    step: str | None = None
    as_stored: bool = False
