"""Find the family of a model by the ``model_type`` of its config."""

from __future__ import annotations

from collections.abc import Iterator

from ckptconv.families import gpt2, llama, moe, qwen
from ckptconv.families.base import Family, Findings, Slot, dims, one

__all__ = ["Family", "Findings", "Slot", "dims", "families", "find_family", "one"]


def families() -> Iterator[Family]:
    """Yield ckptconv's families, then those of installed plug-ins (entry point ``ckptconv.families``)."""
    yield from (llama.FAMILY, qwen.QWEN2, qwen.QWEN3, gpt2.FAMILY)
    yield from (moe.MIXTRAL, moe.QWEN2_MOE, moe.QWEN3_MOE)
    from importlib.metadata import entry_points  # 25 ms, and seldom needed

    for point in entry_points(group="ckptconv.families"):
        yield point.load()


def find_family(model_type: object) -> Family | None:
    """Return the family of a ``model_type``, if there is a table for it."""
    return next((f for f in families() if model_type in f.model_types), None)
