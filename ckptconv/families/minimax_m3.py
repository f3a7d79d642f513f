"""MiniMax-M3, its language model: attention to chosen blocks, experts stacked (transformers 5.23)."""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.deepseek import ROUTER_BIAS
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.qwen import QK_NORMS
from ckptconv.slots import concat, one, stacked

_AT = "model.layers.*"
_E = "layers.*.moe.experts.{e}"
_S = "layers.*.moe.shared"


def _sizes(config: Config) -> Mapping[str, int]:
    return {
        "inner": config.get("dense_intermediate_size") or 0,
        "expert_inner": config.get("intermediate_size") or 0,
        "shared_inner": config.get("shared_intermediate_size") or 0,
        "mtp": 0,
    }


FAMILY = Family(
    name="minimax_m3_vl_text",
    model_types=("minimax_m3_vl_text",),
    entries=(
        EMBED,
        *attention(False, False),
        *QK_NORMS,
        *NORMS,
        one(concat("layers.*.mlp.gate", "layers.*.mlp.up"), f"{_AT}.mlp.gate_up_proj.weight"),
        one("layers.*.mlp.down", f"{_AT}.mlp.down_proj.weight"),
        one("layers.*.moe.router", f"{_AT}.mlp.gate.weight"),
        ROUTER_BIAS,
        one(stacked(concat(f"{_E}.gate", f"{_E}.up")), f"{_AT}.mlp.experts.gate_up_proj"),
        one(stacked(f"{_E}.down"), f"{_AT}.mlp.experts.down_proj"),
        one(concat(f"{_S}.gate", f"{_S}.up"), f"{_AT}.mlp.shared_experts.gate_up_proj.weight"),
        one(f"{_S}.down", f"{_AT}.mlp.shared_experts.down_proj.weight"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=_sizes,
)
