"""Name the slots and the packs of them that several of these tables hold."""

from __future__ import annotations

from ckptconv.slots import concat, grouped

__all__ = [
    "DOWN",
    "EXPERT",
    "EXPERT_DOWN",
    "EXPERT_GATE",
    "EXPERT_UP",
    "GATE",
    "IN_A_ROW",
    "IN_TURNS",
    "KEY_VALUE_UP",
    "QUERY",
    "QUERY_UP",
    "SHARED",
    "UP",
    "K",
    "Q",
    "V",
]

Q, K, V = "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v"
GATE, UP, DOWN = "layers.*.mlp.gate", "layers.*.mlp.up", "layers.*.mlp.down"
EXPERT = "layers.*.moe.experts.{e}"
EXPERT_GATE, EXPERT_UP, EXPERT_DOWN = (f"{EXPERT}.{part}" for part in ("gate", "up", "down"))
SHARED = "layers.*.moe.shared"
IN_TURNS, IN_A_ROW = grouped("kv_heads", Q, K, V), concat(Q, K, V)
QUERY = grouped("heads", "layers.*.mla.q.nope", "layers.*.mla.q.rope")
QUERY_UP = grouped("heads", "layers.*.mla.q_b.nope", "layers.*.mla.q_b.rope")
KEY_VALUE_UP = grouped("heads", "layers.*.mla.kv_b.k", "layers.*.mla.kv_b.v")
