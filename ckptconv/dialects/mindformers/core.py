"""Name the tensors of models on MindFormers' own core since 1.5: Qwen3, Qwen3-MoE, DeepSeek-V3.

Sources: parallel_core, models/*/utils.py.
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
    mtp_lines,
    norm,
    under,
)
from ckptconv.slots import (
    columns,
    concat,
    interleaved,
    one,
    rows,
    stacked,
    transposed,
)

__all__ = ["CORE"]

_FC1 = interleaved(GATE, UP)
_SHARED_FC1 = f"{SHARED}.gate", f"{SHARED}.up"
_EXPERT_FC1 = concat(EXPERT_GATE, EXPERT_UP)
_CORE_ATTENTION = (
    *lines(IN_TURNS, "self_attention.linear_qkv", "!mla !qkv_apart !qkv_contiguous"),
    *lines(IN_A_ROW, "self_attention.linear_qkv", "!mla !qkv_apart qkv_contiguous"),
    *lines(Q, "self_attention.linear_q", "!mla qkv_apart"),
    *lines(K, "self_attention.linear_k", "!mla qkv_apart"),
    *lines(V, "self_attention.linear_v", "!mla qkv_apart"),
    *norm("layers.*.attn.q_norm", "self_attention.q_layernorm", "!mla"),
    *norm("layers.*.attn.k_norm", "self_attention.k_layernorm", "!mla"),
    *lines("layers.*.attn.o", "self_attention.linear_proj", "!mla"),
)
_CORE_LATENT = (
    *lines(
        concat("layers.*.mla.q_a", "layers.*.mla.kv_a"), "self_attention.linear_qkv", "mla q_lora !mla_down"
    ),
    *lines(
        concat(QUERY, "layers.*.mla.kv_a"), "self_attention.linear_qkv", "mla !q_lora !mla_down", bias=False
    ),
    *lines("layers.*.mla.q_a", "self_attention.linear_q_down_proj", "mla q_lora mla_down"),
    *lines(QUERY, "self_attention.linear_q_proj", "mla !q_lora mla_down", bias=False),
    *lines("layers.*.mla.kv_a", "self_attention.linear_kv_down_proj", "mla mla_down"),
    *norm("layers.*.mla.q_a_norm", "self_attention.q_layernorm", "mla"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.k_layernorm", "mla !mla_down"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.kv_layernorm", "mla mla_down"),
    *lines(QUERY_UP, "self_attention.linear_qb", "mla !mla_split !mla_down", bias=False),
    *lines(KEY_VALUE_UP, "self_attention.linear_kvb", "mla !mla_split !mla_down", bias=False),
    *lines(QUERY_UP, "self_attention.linear_q_up_proj", "mla mla_down", bias=False),
    *lines(KEY_VALUE_UP, "self_attention.linear_kv_up_proj", "mla mla_down", bias=False),
    *lines("layers.*.mla.q_b.nope", "self_attention.linear_qk_nope", "mla mla_split", bias=False),
    *lines("layers.*.mla.q_b.rope", "self_attention.linear_qk_rope", "mla mla_split", bias=False),
    *lines("layers.*.mla.kv_b.k", "self_attention.linear_kv_nope", "mla mla_split", bias=False),
    *lines("layers.*.mla.kv_b.v", "self_attention.linear_v", "mla mla_split", bias=False),
    *lines("layers.*.mla.o", "self_attention.linear_proj", "mla"),
)
_CORE_MLP = (
    *lines(_FC1, "mlp.linear_fc1", "!mlp_apart !mlp_contiguous"),
    *lines(concat(GATE, UP), "mlp.linear_fc1", "!mlp_apart mlp_contiguous"),
    *lines(GATE, "mlp.gating", "mlp_apart"),
    *lines(UP, "mlp.hidden", "mlp_apart"),
    *lines(DOWN, "mlp.linear_fc2"),
)
_CORE_EXPERTS = (
    one("layers.*.moe.router", "mlp.router.weight"),
    one("layers.*.moe.router_bias", "mlp.router.expert_bias"),
    one(rows(stacked(transposed(_EXPERT_FC1))), "mlp.experts.weight1", when="!sequential !wide"),
    one(columns(stacked(transposed(_EXPERT_FC1))), "mlp.experts.weight1", when="!sequential wide"),
    one(rows(stacked(transposed(EXPERT_DOWN))), "mlp.experts.weight2", when="!sequential"),
    one(_EXPERT_FC1, "mlp.experts.local_experts.{e}.linear_fc1.weight", when="sequential"),
    one(EXPERT_DOWN, "mlp.experts.local_experts.{e}.linear_fc2.weight", when="sequential"),
    one(interleaved(*_SHARED_FC1), "mlp.shared_experts.linear_fc1.weight", when="!mlp_contiguous"),
    one(concat(*_SHARED_FC1), "mlp.shared_experts.linear_fc1.weight", when="mlp_contiguous"),
    one(f"{SHARED}.down", "mlp.shared_experts.linear_fc2.weight"),
)
_CORE_LAYER = (
    *norm("layers.*.attn_norm", "input_layernorm"),
    *norm("layers.*.mlp_norm", "pre_mlp_layernorm"),
    *_CORE_ATTENTION,
    *_CORE_LATENT,
    *_CORE_MLP,
    *_CORE_EXPERTS,
)
CORE = Style(
    name="mindformers-core",
    entries=(
        one("embed", "embedding.word_embeddings.weight"),
        *under("decoder.layers.*.", _CORE_LAYER),
        *norm("final_norm", "decoder.final_layernorm"),
        one("head", "output_layer.weight"),
        # The converter writes it for models that predict one token (convert_deepseekv3_hf_weight.py).
        one("head", "mtp.output_layer.weight", when="mtp_head", copy=True),
        one("mtp.*.enorm", "mtp.layers.*.enorm.weight"),
        one("mtp.*.hnorm", "mtp.layers.*.hnorm.weight"),
        one("mtp.*.eh_proj", "mtp.layers.*.eh_proj.weight"),
        *mtp_lines("mtp.layers.*.transformer_layer.", _CORE_LAYER),
        *norm("mtp.*.norm", "mtp.layers.*.final_layernorm"),
    ),
    words={
        "mla": r".*\.self_attention\.(linear_kvb|linear_kv_up_proj|linear_kv_nope)\.weight",
        "q_lora": r".*\.self_attention\.(linear_qb|linear_q_up_proj|linear_qk_nope)\.weight",
        "mla_down": r".*\.self_attention\.linear_kv_down_proj\.weight",
        "mla_split": r".*\.self_attention\.linear_kv_nope\.weight",
        "qkv_apart": r".*\.self_attention\.linear_k\.weight",
        "mlp_apart": r".*\.mlp\.gating\.weight",
        "sequential": r".*\.local_experts\..*",
        "mtp_head": r"mtp\.output_layer\.weight",
    },
)
