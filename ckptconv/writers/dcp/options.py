"""Say what may be asked of plain PyTorch distributed checkpoints."""

from __future__ import annotations

from ckptconv.plans.options import Size, Text, option
from ckptconv.records import dataclass

__all__ = ["DcpOptions"]


@dataclass(frozen=True, slots=True)
class DcpOptions:
    """Own what a plain distributed checkpoint is written with."""

    max_shard_size: int = option(
        Size(), "Most bytes of weights per file; 5GB by default.", default=5 * 10**9, panel="What is written"
    )
    tokenizer: str | None = option(
        Text("DIR_OR_HUB_ID"),
        "Where the tokenizer is, if not beside it.",
        panel="Config and tokenizer",
        common=True,
    )
