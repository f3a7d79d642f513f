"""Name the tensors of models on MindFormers' own core since 1.5: Qwen3, Qwen3-MoE, DeepSeek-V3.

Sources: parallel_core, models/*/utils.py; for experts with three axes and the bias beside
them mindformers 2.1, ``pynative/transformers/moe``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ckptconv.dialects.base import Dialect, for_mtp, norm, plain, prefixed, whole
from ckptconv.dialects.mindformers.parts import (
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
    V,
)
from ckptconv.relations import Spec
from ckptconv.slots import (
    Words,
    columns,
    concat,
    interleaved,
    rows,
    stacked,
    transposed,
)

__all__ = ["CORE"]

_FC1 = interleaved(GATE, UP)
_SHARED_FC1 = f"{SHARED}.gate", f"{SHARED}.up"
_EXPERT_FC1 = concat(EXPERT_GATE, EXPERT_UP)
_CORE_ATTENTION = (
    *whole(IN_TURNS, "self_attention.linear_qkv", bias=True, when="!mla !qkv_apart !qkv_contiguous"),
    *whole(IN_A_ROW, "self_attention.linear_qkv", bias=True, when="!mla !qkv_apart qkv_contiguous"),
    *whole(Q, "self_attention.linear_q", bias=True, when="!mla qkv_apart"),
    *whole(K, "self_attention.linear_k", bias=True, when="!mla qkv_apart"),
    *whole(V, "self_attention.linear_v", bias=True, when="!mla qkv_apart"),
    *norm("layers.*.attn.q_norm", "self_attention.q_layernorm.", when="!mla"),
    *norm("layers.*.attn.k_norm", "self_attention.k_layernorm.", when="!mla"),
    *whole("layers.*.attn.o", "self_attention.linear_proj", bias=True, when="!mla"),
)
_CORE_LATENT = (
    *whole(
        concat("layers.*.mla.q_a", "layers.*.mla.kv_a"),
        "self_attention.linear_qkv",
        bias=True,
        when="mla mla.q_a !mla_down",
    ),
    *whole(concat(QUERY, "layers.*.mla.kv_a"), "self_attention.linear_qkv", when="mla !mla.q_a !mla_down"),
    *whole("layers.*.mla.q_a", "self_attention.linear_q_down_proj", bias=True, when="mla mla.q_a mla_down"),
    *whole(QUERY, "self_attention.linear_q_proj", when="mla !mla.q_a mla_down"),
    *whole("layers.*.mla.kv_a", "self_attention.linear_kv_down_proj", bias=True, when="mla mla_down"),
    *norm("layers.*.mla.q_a_norm", "self_attention.q_layernorm.", when="mla"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.k_layernorm.", when="mla !mla_down"),
    *norm("layers.*.mla.kv_a_norm", "self_attention.kv_layernorm.", when="mla mla_down"),
    *whole(QUERY_UP, "self_attention.linear_qb", when="mla !mla_split !mla_down"),
    *whole(KEY_VALUE_UP, "self_attention.linear_kvb", when="mla !mla_split !mla_down"),
    *whole(QUERY_UP, "self_attention.linear_q_up_proj", when="mla mla_down"),
    *whole(KEY_VALUE_UP, "self_attention.linear_kv_up_proj", when="mla mla_down"),
    *whole("layers.*.mla.q_b.nope", "self_attention.linear_qk_nope", when="mla mla_split"),
    *whole("layers.*.mla.q_b.rope", "self_attention.linear_qk_rope", when="mla mla_split"),
    *whole("layers.*.mla.kv_b.k", "self_attention.linear_kv_nope", when="mla mla_split"),
    *whole("layers.*.mla.kv_b.v", "self_attention.linear_v", when="mla mla_split"),
    *whole("layers.*.mla.o", "self_attention.linear_proj", bias=True, when="mla"),
)
_CORE_MLP = (
    *whole(_FC1, "mlp.linear_fc1", bias=True, when="!mlp_apart !mlp_contiguous"),
    *whole(concat(GATE, UP), "mlp.linear_fc1", bias=True, when="!mlp_apart mlp_contiguous"),
    *whole(GATE, "mlp.gating", bias=True, when="mlp_apart"),
    *whole(UP, "mlp.hidden", bias=True, when="mlp_apart"),
    *whole(DOWN, "mlp.linear_fc2", bias=True),
)
_CORE_EXPERTS = (
    plain("layers.*.moe.router", "mlp.router.weight"),
    plain("layers.*.moe.router_bias", "mlp.router.expert_bias", when="!bias_beside"),
    plain("layers.*.moe.router_bias", "mlp.expert_bias", when="bias_beside"),
    plain(stacked(transposed(_EXPERT_FC1)), "mlp.experts.weight1", when="!sequential apart"),
    plain(stacked(transposed(EXPERT_DOWN)), "mlp.experts.weight2", when="!sequential apart"),
    plain(rows(stacked(transposed(_EXPERT_FC1))), "mlp.experts.weight1", when="!sequential !apart !wide"),
    plain(columns(stacked(transposed(_EXPERT_FC1))), "mlp.experts.weight1", when="!sequential !apart wide"),
    plain(rows(stacked(transposed(EXPERT_DOWN))), "mlp.experts.weight2", when="!sequential !apart"),
    plain(_EXPERT_FC1, "mlp.experts.local_experts.{e}.linear_fc1.weight", when="sequential"),
    plain(EXPERT_DOWN, "mlp.experts.local_experts.{e}.linear_fc2.weight", when="sequential"),
    plain(interleaved(*_SHARED_FC1), "mlp.shared_experts.linear_fc1.weight", when="!mlp_contiguous"),
    plain(concat(*_SHARED_FC1), "mlp.shared_experts.linear_fc1.weight", when="mlp_contiguous"),
    plain(f"{SHARED}.down", "mlp.shared_experts.linear_fc2.weight"),
)
_CORE_LAYER = (
    *norm("layers.*.attn_norm", "input_layernorm."),
    *norm("layers.*.mlp_norm", "pre_mlp_layernorm."),
    *_CORE_ATTENTION,
    *_CORE_LATENT,
    *_CORE_MLP,
    *_CORE_EXPERTS,
)


def _shapes(tensors: Mapping[str, Spec], names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Tell where experts have an axis of their own, or first matrices are ``[hidden, experts*2*inner]``."""
    hidden = tensors[_EMBED].shape[-1] if _EMBED in tensors else 0
    for name, spec in tensors.items():
        if name.endswith((".mlp.experts.weight1", ".mlp.experts.weight2")) and len(spec.shape) == 3:
            yield name, "apart"
        elif name.endswith(".mlp.experts.weight1") and spec.shape[0] == hidden:
            yield name, "wide"


def _open(tensors: Mapping[str, Spec], words: Words) -> dict[str, bool]:
    left: dict[str, bool] = {}
    latent = "mla" in words.names
    if not latent and any(".self_attention.linear_qkv.weight" in n for n in tensors):
        left["qkv_contiguous"] = False
    if any(n.endswith(("mlp.linear_fc1.weight", "shared_experts.linear_fc1.weight")) for n in tensors):
        left["mlp_contiguous"] = latent
    return left


_EMBED = "embedding.word_embeddings.weight"
CORE = Dialect(
    name="mindformers-core",
    lines=(
        plain("embed", _EMBED),
        *prefixed(_CORE_LAYER, "decoder.layers.*."),
        *norm("final_norm", "decoder.final_layernorm."),
        plain("head", "output_layer.weight"),
        # The converter writes it for models that predict one token (convert_deepseekv3_hf_weight.py).
        plain("head", "mtp.output_layer.weight", when="mtp_head", copy=True),
        plain("mtp.*.enorm", "mtp.layers.*.enorm.weight"),
        plain("mtp.*.hnorm", "mtp.layers.*.hnorm.weight"),
        plain("mtp.*.eh_proj", "mtp.layers.*.eh_proj.weight"),
        *for_mtp(_CORE_LAYER, "mtp.layers.*.transformer_layer."),
        *norm("mtp.*.norm", "mtp.layers.*.final_layernorm."),
    ),
    tells={
        "mla": r".*\.self_attention\.(linear_kvb|linear_kv_up_proj|linear_kv_nope)\.weight",
        "mla.q_a": r".*\.self_attention\.(linear_qb|linear_q_up_proj|linear_qk_nope)\.weight",
        "mla_down": r".*\.self_attention\.linear_kv_down_proj\.weight",
        "mla_split": r".*\.self_attention\.linear_kv_nope\.weight",
        "qkv_apart": r".*\.self_attention\.linear_k\.weight",
        "mlp_apart": r".*\.mlp\.gating\.weight",
        "sequential": r".*\.local_experts\..*",
        "bias_beside": r".*\.mlp\.expert_bias",
        "mtp_head": r"mtp\.output_layer\.weight",
    },
    shapes=_shapes,
    reads=("apart", "wide", "qkv_contiguous", "mlp_contiguous"),
    leaves_open=_open,
    ignored=(r".*\.inv_freq",),
    ranks=False,
)
