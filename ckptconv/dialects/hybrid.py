"""Name what Megatron-core models saved as a GPT's: halves of layers, and what wrappers hold.

HybridModel's layers are each half of a GPT's.

Layer g is the g-th with attention and the g-th with an MLP or experts; the last norm is called
``final_norm`` (megatron-core 0.19, ``dist_checkpointing/gpt_checkpoint_interop.py``,
``models/hybrid/hybrid_layer_allocation.py``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

__all__ = ["hybrid_names", "without_pattern", "wrapped_names"]

_NAME: Final = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_ATTENTION: Final = ("self_attention.", "input_layernorm.")
_MLP: Final = ("mlp.", "pre_mlp_layernorm.")
_PATTERNS: Final = (
    *("is_hybrid_model", "hybrid_attention_ratio", "hybrid_mlp_ratio"),
    *("hybrid_override_pattern", "hybrid_layer_pattern"),
)


def hybrid_names(names: Collection[str]) -> dict[str, str]:
    """Return the names a GPT's tensors have, old to new; empty where layers are whole, or of other kinds."""
    if "decoder.final_norm.weight" not in names:
        return {}
    kinds: dict[int, set[str]] = {}
    for name in names:
        if (match := _NAME.fullmatch(name)) is not None:
            kinds.setdefault(int(match[1]), set()).add(_kind(match[2]))
    if any(len(k) != 1 for k in kinds.values()):
        return {}
    order = [next(iter(kinds[n])) for n in sorted(kinds)]
    if set(order) != {"attention", "mlp"} or order.count("attention") != order.count("mlp"):
        return {}
    number = {n: order[:i].count(order[i]) for i, n in enumerate(sorted(kinds))}
    found = {}
    for name in names:
        match = _NAME.fullmatch(name)
        new = name if match is None else f"decoder.layers.{number[int(match[1])]}.{match[2]}"
        found[name] = new.replace("decoder.final_norm.", "decoder.final_layernorm.")
    return found


def _kind(name: str) -> str:
    if name.startswith(_ATTENTION):
        return "attention"
    return "mlp" if name.startswith(_MLP) else "other"


def without_pattern(arguments: Mapping[str, Any], *, halves: bool) -> dict[str, Any]:
    """Return arguments without what the numbers of the layers show: which layer is of which kind.

    Args:
        arguments: The arguments by name.
        halves: Whether `hybrid_names` joined two layers to one.
    """
    found = {k: v for k, v in arguments.items() if k not in _PATTERNS}
    if halves and isinstance(count := found.get("num_layers"), int):
        found["num_layers"] = count // 2
    return found


def wrapped_names(names: Collection[str]) -> dict[str, str]:
    """Return names without the wrapper that mcore-bridge 1.6 (ms-swift) puts around what sees, old to new.

    Empty if there is none: ``visual.visual.blocks`` is Hugging Face's ``visual.blocks``.
    """
    if not any(n.startswith("visual.visual.") for n in names):
        return {}
    return {n: n.replace("visual.visual.", "visual.", 1) for n in names}
