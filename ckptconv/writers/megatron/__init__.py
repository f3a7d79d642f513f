"""Write the ranks of Megatron's ``torch`` format, also as ModelLink and MindSpeed-LLM have them."""

from __future__ import annotations

from ckptconv.plugins import later
from ckptconv.writers.megatron.options import MegatronTarget
from ckptconv.writers.writer import Writer

__all__ = ["WRITER"]

WRITER = Writer(
    "megatron", later("ckptconv.writers.megatron.target:lay_out"), MegatronTarget, producer="megatron"
)
