"""Jamba: the first Mamba, with norms of its own, or attention; an MLP or experts (transformers 5.23)."""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import EMBED, IGNORED, attention, gated
from ckptconv.families.mamba import FEED_FORWARD_NORMS, FINAL
from ckptconv.slots import linear, one

_AT = "model.layers.*"
_S = "layers.*.ssm"


def _sizes(config: Config) -> Mapping[str, int]:
    hidden = config.get("hidden_size") or 0
    rank = config.get("mamba_dt_rank")
    return {
        "ssm_inner": (config.get("mamba_expand") or 2) * hidden,
        "ssm_state": config.get("mamba_d_state") or 16,
        "ssm_kernel": config.get("mamba_d_conv") or 4,
        "ssm_rank": rank if isinstance(rank, int) else -(-hidden // 16),
    }


def _kinds(config: Config) -> tuple[str, ...]:
    def turn(what: str, i: int, period: int, offset: int) -> bool:
        return i % (config.get(f"{what}_layer_period") or period) == (
            config.get(f"{what}_layer_offset") if config.get(f"{what}_layer_offset") is not None else offset
        )

    many = (config.get("num_experts") or 0) > 1
    return tuple(
        ("attn" if turn("attn", i, 8, 4) else "ssm")
        + (" moe" if many and turn("expert", i, 2, 1) else " mlp")
        for i in range(config.get("num_hidden_layers") or 0)
    )


FAMILY = Family(
    name="jamba",
    model_types=("jamba",),
    entries=(
        EMBED,
        *linear(f"{_S}.in", f"{_AT}.mamba.in_proj", bias="mamba_proj_bias"),
        *linear(f"{_S}.conv", f"{_AT}.mamba.conv1d", bias="mamba_conv_bias"),
        one(f"{_S}.x", f"{_AT}.mamba.x_proj.weight"),
        *linear(f"{_S}.dt", f"{_AT}.mamba.dt_proj", bias=True),
        one(f"{_S}.a_log", f"{_AT}.mamba.A_log"),
        one(f"{_S}.d", f"{_AT}.mamba.D"),
        one(f"{_S}.dt_norm", f"{_AT}.mamba.dt_layernorm.weight"),
        one(f"{_S}.b_norm", f"{_AT}.mamba.b_layernorm.weight"),
        one(f"{_S}.c_norm", f"{_AT}.mamba.c_layernorm.weight"),
        *linear(f"{_S}.o", f"{_AT}.mamba.out_proj", bias="mamba_proj_bias"),
        *attention(False, False),
        *FEED_FORWARD_NORMS,
        *gated("layers.*.mlp", f"{_AT}.feed_forward"),
        one("layers.*.moe.router", f"{_AT}.feed_forward.router.weight"),
        *gated("layers.*.moe.experts.{e}", f"{_AT}.feed_forward.experts.{{e}}"),
        *FINAL,
    ),
    flags={"tie_word_embeddings": False, "mamba_conv_bias": True},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
    slots={
        f"{_S}.in": "2*ssm_inner,hidden",
        f"{_S}.conv": "ssm_inner,1,ssm_kernel",
        f"{_S}.x": "ssm_rank+2*ssm_state,ssm_inner",
        f"{_S}.dt": "ssm_inner,ssm_rank",
        f"{_S}.a_log": "ssm_inner,ssm_state",
        f"{_S}.d": "ssm_inner",
        f"{_S}.dt_norm": "ssm_rank",
        f"{_S}.b_norm": "ssm_state",
        f"{_S}.c_norm": "ssm_state",
        f"{_S}.o": "hidden,ssm_inner",
    },
)
