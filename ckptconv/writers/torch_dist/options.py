"""Say what may be asked of megatron-core's ``torch_dist`` format."""

from __future__ import annotations

from ckptconv.plans.options import Size, option
from ckptconv.records import dataclass
from ckptconv.writers.megatron.options import Grids

__all__ = ["TorchDistTarget"]


@dataclass(frozen=True)
class TorchDistTarget(Grids):
    """Own what ``torch_dist`` is written with; sizes go into the arguments and the vocabulary's padding."""

    max_shard_size: int = option(
        Size(), "Most bytes of weights per file; 5GB by default.", default=5 * 10**9, panel="What is written"
    )
