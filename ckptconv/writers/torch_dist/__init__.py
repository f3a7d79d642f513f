"""Write megatron-core's ``torch_dist`` format."""

from __future__ import annotations

from ckptconv.writers.torch_dist.target import TorchDistTarget, lay_out
from ckptconv.writers.writer import Writer

__all__ = ["WRITER"]

WRITER = Writer("torch_dist", lay_out, TorchDistTarget, producer="megatron")
