"""Write megatron-core's ``torch_dist`` format."""

from __future__ import annotations

from ckptconv.plugins import later
from ckptconv.writers.torch_dist.options import TorchDistTarget
from ckptconv.writers.writer import Writer

__all__ = ["WRITER"]

WRITER = Writer(
    "torch_dist", later("ckptconv.writers.torch_dist.target:lay_out"), TorchDistTarget, producer="megatron"
)
