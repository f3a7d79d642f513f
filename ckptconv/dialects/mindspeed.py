"""ModelLink (MindSpeed-LLM v1) and MindSpeed-LLM v2 where they differ from megatron-core.

Names: ModelLink d4feda79, ``modellink/tasks/checkpoint/models.py``; MindSpeed-LLM c77308a1,
``mindspeed_llm/tasks/checkpoint/model_builder.py``.
"""

from dataclasses import replace

from ckptconv.dialects.base import Line, column, for_mtp, norm, plain, prefixed, row, whole
from ckptconv.dialects.core import (
    ATTENTION,
    CORE_LOCAL,
    EMBEDDING,
    GROUPED,
    KEY_VALUE_UP,
    MLP,
    MTP_ENDS,
    QUERY,
    QUERY_UP,
    ROUTER,
    SEQUENTIAL,
    SHARED,
    megatron,
)
from ckptconv.dialects.mindspeed_own import DEEPSEEK_V4, DEEPSEEK_V4_ENDS, LONGCAT
from ckptconv.dialects.vision import (
    IMAGE_ENCODER,
    IMAGE_ENCODER_PLAIN,
    IMAGE_ENCODER_QWEN2,
    IMAGE_ENCODER_QWEN2_PLAIN,
)
from ckptconv.slots import concat, grouped

# Every rank holds the compressed projections whole, and q and kv in one.
_FUSED = (
    *whole(concat("layers.*.mla.q_a", "layers.*.mla.kv_a"), "self_attention.linear_qkv", when="mla mla.q_a"),
    *whole(concat(QUERY, "layers.*.mla.kv_a"), "self_attention.linear_qkv", when="mla !mla.q_a"),
    *norm("layers.*.mla.q_a_norm", "self_attention.q_layernorm.", when="mla"),
    *row("layers.*.mla.o", "self_attention.linear_proj", when="mla"),
)
_UP = (
    *column(QUERY_UP, "self_attention.linear_q_up_proj", bias=False, when="mla !mm_split"),
    *column(KEY_VALUE_UP, "self_attention.linear_kv_up_proj", bias=False, when="mla !mm_split"),
)
# --mla-mm-split
_SPLIT = (
    *column("layers.*.mla.q_b.nope", "self_attention.linear_qk_nope", bias=False, when="mla mm_split"),
    *column("layers.*.mla.q_b.rope", "self_attention.linear_qk_rope", bias=False, when="mla mm_split"),
    *column("layers.*.mla.kv_b.k", "self_attention.linear_kv_nope", bias=False, when="mla mm_split"),
    *column("layers.*.mla.kv_b.v", "self_attention.linear_v", bias=False, when="mla mm_split"),
)
_INDEXER = (
    *whole("layers.*.mla.indexer.q_b", "self_attention.dsa_indexer.wq_b"),
    *whole("layers.*.mla.indexer.k", "self_attention.dsa_indexer.wk"),
    *norm("layers.*.mla.indexer.k_norm", "self_attention.dsa_indexer.k_norm."),
    *whole("layers.*.mla.indexer.weights", "self_attention.dsa_indexer.weights_proj"),
)
_POST_NORMS = (
    *norm("layers.*.attn_post_norm", "post_attn_norm."),
    *norm("layers.*.mlp_post_norm", "post_mlp_layernorm."),
)


# Gated delta nets and gated attention of Qwen3-Next, as the model has them: on one rank, nothing regrouped.
_D = "layers.*.gdn"
_NEXT = (
    *whole(
        grouped("heads", "layers.*.attn.q", "layers.*.attn.gate"), "self_attention.q_proj", when="attn.gate"
    ),
    *whole("layers.*.attn.k", "self_attention.k_proj", when="attn.gate"),
    *whole("layers.*.attn.v", "self_attention.v_proj", when="attn.gate"),
    *whole(grouped("delta_keys", *(f"{_D}.{part}" for part in "qkvz")), "self_attention.in_proj_qkvz"),
    *whole(grouped("delta_keys", f"{_D}.beta", f"{_D}.alpha"), "self_attention.in_proj_ba"),
    *whole(concat(*(f"{_D}.conv.{part}" for part in "qkv")), "self_attention.conv1d"),
    plain(f"{_D}.a_log", "self_attention.A_log"),
    plain(f"{_D}.dt_bias", "self_attention.dt_bias"),
    replace(plain(f"{_D}.norm", "self_attention.norm.weight"), as_model=True),
    *whole(f"{_D}.o", "self_attention.out_proj"),
)


def _model(layer: tuple[Line, ...], before: tuple[Line, ...] = ()) -> tuple[Line, ...]:
    ends = (
        *norm("final_norm", "final_layernorm.", when="mtp"),
        *norm("final_norm", "decoder.final_layernorm.", when="!mtp"),
        *column("head", "output_layer"),
    )
    return (
        *DEEPSEEK_V4_ENDS,
        *MTP_ENDS,
        *EMBEDDING,
        *before,
        *for_mtp(layer, "mtp.layers.*.transformer_layer."),
        *norm("mtp.*.norm", "mtp.final_layernorms.*."),
        *prefixed(layer, "decoder.layers.*."),
        *ends,
    )


_NORMS = (*norm("layers.*.attn_norm", "input_layernorm."), *norm("layers.*.mlp_norm", "pre_mlp_layernorm."))
# A dense layer in front of sparse ones has its norm inside fc1, a dense model has not.
_TE_NORMS = (
    *norm("layers.*.attn_norm", "self_attention.linear_qkv.layer_norm_"),
    *norm("layers.*.mlp_norm", "mlp.linear_fc1.layer_norm_", when="any.moe !moe"),
    *norm("layers.*.mlp_norm", "pre_mlp_layernorm."),
)
_KV_NORM = norm("layers.*.mla.kv_a_norm", "self_attention.kv_layernorm.", when="mla")
_V2 = (
    *LONGCAT,
    *DEEPSEEK_V4,
    *_NEXT,
    *ATTENTION,
    *_FUSED,
    *_UP,
    *_SPLIT,
    *_KV_NORM,
    *_INDEXER,
    *_POST_NORMS,
    *MLP,
    *ROUTER,
    *SHARED,
    *SEQUENTIAL,
    *GROUPED,
)

MINDSPEED = megatron("mindspeed", _model((*_NORMS, *_V2)), arguments="mindspeed")
# MindSpeed-MM: core's names, and an image encoder of its own.
MINDSPEED_MM = megatron("mindspeed-mm", CORE_LOCAL.lines, arguments="mindspeed", parts=(IMAGE_ENCODER,))
MINDSPEED_MM_QWEN2 = megatron(
    "mindspeed-mm-qwen2-vl", CORE_LOCAL.lines, arguments="mindspeed", parts=(IMAGE_ENCODER_QWEN2,)
)
# The same with ``enable_canonical_hf_struct``, as for LoRA: query, key, value, gate and up apart.
_MM_APART = (
    *prefixed(
        (
            *column("layers.*.attn.q", "self_attention.q_proj"),
            *column("layers.*.attn.k", "self_attention.k_proj"),
            *column("layers.*.attn.v", "self_attention.v_proj"),
            *column("layers.*.mlp.gate", "mlp.gate_proj"),
            *column("layers.*.mlp.up", "mlp.up_proj"),
        ),
        "decoder.layers.*.",
    ),
    *CORE_LOCAL.lines,
)
MINDSPEED_MM_PLAIN = megatron(
    "mindspeed-mm-canonical", _MM_APART, arguments="mindspeed", parts=(IMAGE_ENCODER_PLAIN,)
)
MINDSPEED_MM_QWEN2_PLAIN = megatron(
    "mindspeed-mm-qwen2-vl-canonical", _MM_APART, arguments="mindspeed", parts=(IMAGE_ENCODER_QWEN2_PLAIN,)
)
MINDSPEED_TE = megatron("mindspeed-te", _model((*_TE_NORMS, *_V2)), arguments="mindspeed")

# ModelLink, and MindSpeed-LLM 1.0 to 2.1; --mla-mm-split since 2.0.
_V1_LATENT = (
    *_FUSED,
    *norm("layers.*.mla.kv_a_norm", "self_attention.k_layernorm.", when="mla"),
    *column(QUERY_UP, "self_attention.linear_qb", bias=False, when="mla !mm_split"),
    *column(KEY_VALUE_UP, "self_attention.linear_kvb", bias=False, when="mla !mm_split"),
    *_SPLIT,
)
_V1_SHARED = (
    *(line for line in SHARED if not line.name.endswith("gate_weight")),
    plain("layers.*.moe.shared_gate", "mlp.shared_expert_gate.weight"),
)
_V1 = (
    *(*_NORMS, *ATTENTION, *_V1_LATENT, *_POST_NORMS, *MLP, *ROUTER, *_V1_SHARED, *SHARED[-1:]),
    *(*SEQUENTIAL, *GROUPED),
)
# MindSpeed-LLM 2.0: a layer for multi-token prediction has its norm, and on later stages its own embedding.
_MTP_2_0 = (
    *norm("mtp.*.enorm", "mtp_layers.*.enorm."),
    *norm("mtp.*.hnorm", "mtp_layers.*.hnorm."),
    *column("mtp.*.eh_proj", "mtp_layers.*.eh_proj", bias=False),
    *for_mtp(_V1, "mtp_layers.*.transformer_layer."),
    *norm("mtp.*.norm", "mtp_layers.*.final_layernorm."),
    *(replace(e, copy=True) for e in column("embed", "mtp_layers.*.embedding.word_embeddings", bias=False)),
)
MODELLINK = megatron(
    "modellink",
    arguments="mindspeed",
    lines=(*_model(_V1), *_MTP_2_0),
    extra_states=(
        "self_attention.linear_proj",
        "self_attention.linear_qkv",
        "self_attention.linear_qb",
        "self_attention.linear_kvb",
        "mlp.linear_fc1",
        "mlp.linear_fc2",
        "mlp.shared_experts.linear_fc1",
        "mlp.shared_experts.linear_fc2",
        "output_layer",
    ),
)
