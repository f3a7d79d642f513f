"""Qwen2, Qwen2.5 (query, key and value biases) and Qwen3 (query and key norms)."""

from ckptconv.families.base import Family, Slot, one
from ckptconv.families.llama import FAMILY as LLAMA

_PLAIN = tuple(
    s for s in LLAMA.slots if not s.slot.startswith("layers.*.attn.") or not s.slot.endswith(".bias")
)
_BIASES: tuple[Slot, ...] = (
    one("layers.*.attn.q.bias", "model.layers.*.self_attn.q_proj.bias", "heads*head_dim"),
    one("layers.*.attn.k.bias", "model.layers.*.self_attn.k_proj.bias", "kv_heads*head_dim"),
    one("layers.*.attn.v.bias", "model.layers.*.self_attn.v_proj.bias", "kv_heads*head_dim"),
)
_NORMS: tuple[Slot, ...] = (
    one("layers.*.attn.q_norm", "model.layers.*.self_attn.q_norm.weight", "head_dim"),
    one("layers.*.attn.k_norm", "model.layers.*.self_attn.k_norm.weight", "head_dim"),
)

QWEN2 = Family("qwen2", ("qwen2",), (*_PLAIN, *_BIASES), LLAMA.flags, LLAMA.ignored)
QWEN3 = Family("qwen3", ("qwen3",), (*LLAMA.slots, *_NORMS), {**LLAMA.flags, "head_dim": 128}, LLAMA.ignored)
