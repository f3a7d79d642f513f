"""List the targets."""

from __future__ import annotations

from ckptconv.plugins import Registry
from ckptconv.writers.writer import Writer

__all__ = ["WRITERS"]

_OWN = {
    "hf": "ckptconv.writers.huggingface:WRITER",
    "megatron": "ckptconv.writers.megatron:WRITER",
    "torch_dist": "ckptconv.writers.torch_dist:WRITER",
    "dcp": "ckptconv.writers.dcp:WRITER",
    "mindformers": "ckptconv.writers.mindformers:WRITER",
}

WRITERS: Registry[Writer] = Registry("writers", _OWN, lambda: Writer)
"""ckptconv's writers, then those of installed plug-ins (entry point ``ckptconv.writers``)."""
