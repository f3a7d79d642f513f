"""Say what a user may say about a Megatron checkpoint of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from ckptconv.readers.reader import Parallel, Weighed
from ckptconv.slots import Words

__all__ = ["MegatronOptions"]


@dataclass(frozen=True)
class MegatronOptions(Parallel, Weighed):
    """Own the parallel sizes and ``--weights``.

    Attributes:
        words: What the model is like (`ckptconv.plans.checkpoint.Checkpoint.words`), where the names of an
            adapter alone do not tell; known to the program, not asked of a user.
    """

    words: Words | None = None
