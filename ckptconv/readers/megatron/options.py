"""Say what a user may say about a Megatron checkpoint of ranks."""

from __future__ import annotations

from ckptconv.plans.options import Switch, option
from ckptconv.readers.reader import PANEL, Parallel, Weighed
from ckptconv.records import dataclass
from ckptconv.slots import Words

__all__ = ["MegatronOptions"]


@dataclass(frozen=True)
class MegatronOptions(Parallel, Weighed):
    """Own the parallel sizes, ``--weights`` and how MindSpeed-LLM spreads experts.

    Attributes:
        words: What the model is like (`ckptconv.plans.checkpoint.Checkpoint.words`), where the names of an
            adapter alone do not tell; known to the program, not asked of a user.
    """

    extend_ep: bool | None = option(
        Switch(),
        "Whether the run spread whole experts over tensor parallel ranks, where its files do not say.",
        "--moe-tp-extend-ep/--no-moe-tp-extend-ep",
        panel=PANEL,
    )
    words: Words | None = None
