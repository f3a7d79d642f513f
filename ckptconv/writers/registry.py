"""List the targets."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from ckptconv.plugins import Registry
from ckptconv.writers.writer import Writer

__all__ = ["WRITERS"]

_OWN = ("huggingface", "megatron", "torch_dist", "dcp", "mindformers")


def _own() -> Iterator[Writer]:
    for name in _OWN:
        yield import_module(f"ckptconv.writers.{name}").WRITER


WRITERS: Registry[Writer] = Registry("writers", _own, lambda: Writer)
"""ckptconv's writers, then those of installed plug-ins (entry point ``ckptconv.writers``)."""
