"""Mamba 1 and Falcon Mamba: layers of one norm and one selective state space (transformers 5.23)."""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.jamba import FAMILY as JAMBA
from ckptconv.slots import linear, one

_AT, _S = "backbone.layers.*.mixer", "layers.*.ssm"


def _sizes(config: Config) -> Mapping[str, int]:
    hidden, rank = config.get("hidden_size") or 0, config.get("time_step_rank")
    return {
        "ssm_inner": config.get("intermediate_size") or (config.get("expand") or 2) * hidden,
        "ssm_state": config.get("state_size") or 16,
        "ssm_kernel": config.get("conv_kernel") or 4,
        "ssm_rank": rank if isinstance(rank, int) else -(-hidden // 16),
    }


FAMILY = Family(
    name="mamba",
    model_types=("mamba", "falcon_mamba"),
    entries=(
        one("embed", "backbone.embeddings.weight"),
        one("layers.*.attn_norm", "backbone.layers.*.norm.weight"),
        *linear(f"{_S}.in", f"{_AT}.in_proj", bias="use_bias"),
        *linear(f"{_S}.conv", f"{_AT}.conv1d", bias="use_conv_bias"),
        one(f"{_S}.x", f"{_AT}.x_proj.weight"),
        *linear(f"{_S}.dt", f"{_AT}.dt_proj", bias=True),
        one(f"{_S}.a_log", f"{_AT}.A_log"),
        one(f"{_S}.d", f"{_AT}.D"),
        *linear(f"{_S}.o", f"{_AT}.out_proj", bias="use_bias"),
        one("final_norm", "backbone.norm_f.weight"),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True, "use_conv_bias": True},
    ignored=(r"lm_head\.weight",),
    sizes=_sizes,
    slots=JAMBA.slots,
)
