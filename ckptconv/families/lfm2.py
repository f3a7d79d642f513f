"""LFM2, dense and with experts: short convolutions with two gates, or attention (transformers 5.23)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import gated
from ckptconv.slots import linear, one

_AT = "model.layers.*"
_C = "layers.*.conv"
_COMMON = (
    one("embed", "model.embed_tokens.weight"),
    one("layers.*.attn_norm", f"{_AT}.operator_norm.weight"),
    *linear(f"{_C}.in", f"{_AT}.conv.in_proj", bias="conv_bias"),
    *linear(f"{_C}.kernel", f"{_AT}.conv.conv", bias="conv_bias"),
    *linear(f"{_C}.o", f"{_AT}.conv.out_proj", bias="conv_bias"),
    *linear("layers.*.attn.q", f"{_AT}.self_attn.q_proj", bias=False),
    *linear("layers.*.attn.k", f"{_AT}.self_attn.k_proj", bias=False),
    *linear("layers.*.attn.v", f"{_AT}.self_attn.v_proj", bias=False),
    *linear("layers.*.attn.o", f"{_AT}.self_attn.out_proj", bias=False),
    one("layers.*.attn.q_norm", f"{_AT}.self_attn.q_layernorm.weight"),
    one("layers.*.attn.k_norm", f"{_AT}.self_attn.k_layernorm.weight"),
    one("layers.*.mlp_norm", f"{_AT}.ffn_norm.weight"),
    *gated("layers.*.mlp", f"{_AT}.feed_forward", "w1 w3 w2"),
)
_ENDS = (
    one("final_norm", "model.embedding_norm.weight"),
    one("head", "lm_head.weight", when="!tie_word_embeddings"),
)


def _mixers(config: Config) -> list[str]:
    count, full = config.get("num_hidden_layers") or 0, config.get("full_attn_idxs")
    types = config.get("layer_types")
    if types:
        return ["attn" if str(kind).startswith("full") else "conv" for kind in types]
    return ["attn" if full is None or i in full else "conv" for i in range(count)]


def _sizes(config: Config) -> Mapping[str, int]:
    """The width of the MLP is two thirds of what the config says, rounded up, unless it says otherwise."""
    inner = config.get("block_ff_dim") or config.get("intermediate_size") or 0
    if config.get("block_auto_adjust_ff_dim", True):
        inner = int(2 * inner / 3)
        if (factor := config.get("block_ffn_dim_multiplier", 1.0)) is not None:
            inner = int(factor * inner)
            multiple = config.get("block_multiple_of") or 256
            inner = multiple * (-(-inner // multiple))
    return {"inner": inner, "conv_kernel": config.get("conv_L_cache") or 3}


def _sparse_kinds(config: Config) -> tuple[str, ...]:
    dense = config.get("num_dense_layers") or 0
    return tuple(f"{m} {'mlp' if i < dense else 'moe'}" for i, m in enumerate(_mixers(config)))


LFM2 = Family(
    name="lfm2",
    model_types=("lfm2",),
    entries=(*_COMMON, *_ENDS),
    flags={"tie_word_embeddings": True},
    ignored=(r"lm_head\.weight",),
    sizes=_sizes,
    kinds=lambda config: tuple(f"{m} mlp" for m in _mixers(config)),
    slots={f"{_C}.in": "3*hidden,hidden", f"{_C}.kernel": "hidden,1,conv_kernel", f"{_C}.o": "hidden,hidden"},
)
LFM2_MOE = replace(
    LFM2,
    name="lfm2_moe",
    model_types=("lfm2_moe",),
    entries=(
        *_COMMON,
        one("layers.*.moe.router", f"{_AT}.feed_forward.gate.weight"),
        one("layers.*.moe.router_bias", f"{_AT}.feed_forward.expert_bias", when="use_expert_bias"),
        *gated("layers.*.moe.experts.{e}", f"{_AT}.feed_forward.experts.{{e}}", "w1 w3 w2"),
        *_ENDS,
    ),
    flags={"tie_word_embeddings": True, "use_expert_bias": True},
    sizes=lambda config: {"conv_kernel": config.get("conv_L_cache") or 3},
    kinds=_sparse_kinds,
)
