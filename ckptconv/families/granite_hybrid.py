"""Granite 4 hybrids: Mamba 2 or attention, then experts and a shared MLP, each gate and up in one tensor.

transformers 5.23, ``modeling_granitemoehybrid.py``; dense ones have the shared MLP alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.mamba import HYBRID_KEYS, mamba_or_attention, mamba_sizes, mixer
from ckptconv.slots import concat, one, stacked

_AT = "model.layers.*"
_E = "layers.*.moe.experts.{e}"
_X = f"{_AT}.block_sparse_moe"


def _sizes(config: Config) -> Mapping[str, int]:
    shared = config.get("shared_intermediate_size")
    experts = config.get("num_local_experts") or 0
    more = {"shared_inner": shared, "inner": shared} if isinstance(shared, int) else {}
    return {**mamba_sizes(HYBRID_KEYS)(config), **more, "experts": experts}


def _kinds(config: Config) -> tuple[str, ...]:
    block = "moe" if config.get("num_local_experts") else "mlp"
    return tuple(f"{kind} {block}" for kind in mamba_or_attention(config))


FAMILY = Family(
    name="granitemoehybrid",
    model_types=("granitemoehybrid",),
    entries=(
        EMBED,
        *mixer(f"{_AT}.mamba", bias="mamba_proj_bias", conv_bias="mamba_conv_bias"),
        *attention("attention_bias", "attention_bias"),
        *NORMS,
        one("layers.*.moe.router", f"{_X}.router.layer.weight"),
        one(stacked(concat(f"{_E}.gate", f"{_E}.up")), f"{_X}.input_linear.weight"),
        one(stacked(f"{_E}.down"), f"{_X}.output_linear.weight"),
        one(
            concat("layers.*.moe.shared.gate", "layers.*.moe.shared.up"),
            f"{_AT}.shared_mlp.input_linear.weight",
            when="moe",
        ),
        one("layers.*.moe.shared.down", f"{_AT}.shared_mlp.output_linear.weight", when="moe"),
        one(
            concat("layers.*.mlp.gate", "layers.*.mlp.up"),
            f"{_AT}.shared_mlp.input_linear.weight",
            when="!moe",
        ),
        one("layers.*.mlp.down", f"{_AT}.shared_mlp.output_linear.weight", when="!moe"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False, "mamba_conv_bias": True},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
)
