"""What may be said about a checkpoint of Megatron's ``torch_dist`` format."""

from __future__ import annotations

from ckptconv.readers.reader import Parallel, Weighed
from ckptconv.records import dataclass
from ckptconv.slots import Words

__all__ = ["TorchDistOptions"]


@dataclass(frozen=True)
class TorchDistOptions(Parallel, Weighed):
    """Own the parallel sizes of the run that saved, to be checked, and ``--weights``.

    Attributes:
        words: What the model is like, where the names of an adapter alone do not tell; known to the program.
    """

    words: Words | None = None
