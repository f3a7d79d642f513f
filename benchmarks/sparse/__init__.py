"""Write checkpoints of any size that take no space: true structure, holes for data."""

from __future__ import annotations

from sparse.megatron import write_ranks
from sparse.models import MODELS, Parallel
from sparse.torch_dist import write_torch_dist
from sparse.zero3 import write_zero3

__all__ = ["MODELS", "Parallel", "write_ranks", "write_torch_dist", "write_zero3"]
