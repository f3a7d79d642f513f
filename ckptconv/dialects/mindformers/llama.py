"""Name the tensors of Llama and its relatives.

Sources: models/llama, research/qwen2_5, baichuan2, internlm2, mixtral, deepseek3.
"""

from __future__ import annotations

from ckptconv.dialects.mindformers.style import (
    DOWN,
    EXPERT_DOWN,
    EXPERT_GATE,
    EXPERT_UP,
    GATE,
    IN_A_ROW,
    IN_TURNS,
    KEY_VALUE_UP,
    QUERY,
    QUERY_UP,
    SHARED,
    UP,
    K,
    Q,
    Style,
    V,
    lines,
    norm,
    under,
)
from ckptconv.slots import (
    Entry,
    concat,
    interleaved,
    one,
    stacked,
    transposed,
)

__all__ = ["LEGACY"]

_LEGACY_ATTENTION = (
    *lines(Q, "attention.wq", "!qkv_concat !mla"),
    *lines(K, "attention.wk", "!qkv_concat !mla"),
    *lines(V, "attention.wv", "!qkv_concat !mla"),
    *lines(IN_TURNS, "attention.w_qkv", "qkv_concat !wqkv !qkv_contiguous"),
    *lines(IN_A_ROW, "attention.w_qkv", "qkv_concat !wqkv qkv_contiguous"),
    *lines(IN_TURNS, "attention.w", "qkv_concat wqkv"),  # InternLM2's own tensor
    *lines("layers.*.attn.o", "attention.wo", "!mla"),
    *lines("layers.*.mla.q_a", "attention.q2l_proj", "mla q_lora"),
    *norm("layers.*.mla.q_a_norm", "attention.lq_norm", "mla q_lora"),
    *lines(QUERY_UP, "attention.l2q_proj", "mla q_lora", bias=False),
    *lines(QUERY, "attention.q_proj", "mla !q_lora", bias=False),
    *lines("layers.*.mla.kv_a", "attention.kv2l", "mla"),
    *norm("layers.*.mla.kv_a_norm", "attention.lkv_norm", "mla"),
    *lines(KEY_VALUE_UP, "attention.lkv2kv", "mla", bias=False),
    *lines("layers.*.mla.o", "attention.wo", "mla"),
)
_LEGACY_MLP = (
    *lines(GATE, "feed_forward.w1", "!mlp_concat"),
    *lines(DOWN, "feed_forward.w2"),
    *lines(UP, "feed_forward.w3", "!mlp_concat"),
    *lines(interleaved(GATE, UP), "feed_forward.w_gate_hidden", "mlp_concat !mlp_contiguous"),
    *lines(concat(GATE, UP), "feed_forward.w_gate_hidden", "mlp_concat mlp_contiguous"),
)
_ROUTED = "feed_forward.routed_experts"


def _stacked_experts(stem: str, when: str, *, turned: bool) -> tuple[Entry, ...]:
    return tuple(
        one(stacked(transposed(slot) if turned else slot), f"{stem}.{name}.weight", when=when)
        for slot, name in ((EXPERT_GATE, "w1"), (EXPERT_DOWN, "w2"), (EXPERT_UP, "w3"))
    )


_LEGACY_EXPERTS = (
    one("layers.*.moe.router", "feed_forward.router.dense.weight", when="!routed"),
    *_stacked_experts("feed_forward.ffn", "!routed !gmm", turned=False),
    *_stacked_experts("feed_forward.ffn", "!routed gmm", turned=True),
    one("layers.*.moe.router", f"{_ROUTED}.router.dense.weight", when="routed !gmm"),
    one("layers.*.moe.router_bias", f"{_ROUTED}.router.router.topk_bias", when="routed !gmm !score_bias"),
    one("layers.*.moe.router_bias", f"{_ROUTED}.router.e_score_correction_bias", when="routed score_bias"),
    *_stacked_experts(f"{_ROUTED}.ffn", "routed !gmm", turned=False),
    one("layers.*.moe.router", f"{_ROUTED}.router_dense.weight", when="routed gmm"),
    one("layers.*.moe.router_bias", f"{_ROUTED}.topk_bias", when="routed gmm"),
    one(stacked(transposed(concat(EXPERT_GATE, EXPERT_UP))), f"{_ROUTED}.ffn.w1", when="routed gmm"),
    one(stacked(transposed(EXPERT_DOWN)), f"{_ROUTED}.ffn.w2", when="routed gmm"),
    one(f"{SHARED}.gate", "feed_forward.shared_experts.w1.weight"),
    one(f"{SHARED}.down", "feed_forward.shared_experts.w2.weight"),
    one(f"{SHARED}.up", "feed_forward.shared_experts.w3.weight"),
)
LEGACY = Style(
    name="mindformers-legacy",
    entries=(
        one("embed", "model.tok_embeddings.embedding_weight"),
        *under(
            "model.layers.*.",
            (
                *_LEGACY_ATTENTION,
                *_LEGACY_MLP,
                *_LEGACY_EXPERTS,
                *norm("layers.*.attn_norm", "attention_norm"),
                *norm("layers.*.mlp_norm", "ffn_norm"),
            ),
        ),
        *norm("final_norm", "model.norm_out"),
        one("head", "lm_head.weight"),
    ),
    words={
        "qkv_concat": r".*\.attention\.(w|w_qkv)\.weight",
        "wqkv": r".*\.attention\.w\.weight",
        "mlp_concat": r".*\.feed_forward\.w_gate_hidden\.weight",
        "mla": r".*\.attention\.lkv2kv\.weight",
        "q_lora": r".*\.attention\.l2q_proj\.weight",
        "routed": r".*\.routed_experts\..*",
        "gmm": r".*\.routed_experts\.ffn\.w1",
        "score_bias": r".*\.routed_experts\.router\.e_score_correction_bias",
    },
)
