"""Bailing hybrids (Ling 2.5): delta nets whose gates decay each channel, or gated latent attention.

transformers 5.23, ``modeling_bailing_hybrid.py``; names in files are those of the models as published.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.deepseek import shared
from ckptconv.families.llama import ENDS, IGNORED, MLP, NORMS
from ckptconv.families.moe import ROUTED
from ckptconv.slots import grouped, one

_AT = "model.layers.*.attention"
_K = "layers.*.kda"
_WIDE = "kda_heads*kda_dim"
_NAMES = {
    "q": ("q_proj.weight", f"{_WIDE},hidden"),
    "k": ("k_proj.weight", f"{_WIDE},hidden"),
    "v": ("v_proj.weight", f"{_WIDE},hidden"),
    "forget": ("f_proj.weight", f"{_WIDE},hidden"),
    "gate": ("g_proj.weight", f"{_WIDE},hidden"),
    "beta": ("b_proj.weight", "kda_heads,hidden"),
    "conv.q": ("q_conv1d.weight", f"{_WIDE},1,kda_kernel"),
    "conv.k": ("k_conv1d.weight", f"{_WIDE},1,kda_kernel"),
    "conv.v": ("v_conv1d.weight", f"{_WIDE},1,kda_kernel"),
    "a_log": ("A_log", "kda_heads"),
    "dt_bias": ("dt_bias", _WIDE),
    "norm": ("o_norm.weight", "kda_dim"),
    "o": ("dense.weight", f"hidden,{_WIDE}"),
}


def _sizes(config: Config) -> Mapping[str, int]:
    keys = {
        "kda_heads": ("linear_num_heads",),
        "kda_dim": ("linear_head_dim",),
        "kda_kernel": ("linear_conv_kernel_dim", "short_conv_kernel_size"),
    }
    found = {n: next((config[k] for k in given if config.get(k)), 0) for n, given in keys.items()}
    shared_inner = (config.get("num_shared_experts") or 0) * (config.get("moe_intermediate_size") or 0)
    return {**found, "shared_inner": shared_inner, "mtp": 0}


def _kinds(config: Config) -> tuple[str, ...]:
    count, group = config.get("num_hidden_layers") or 0, config.get("layer_group_size") or 1
    types = config.get("layer_types") or ["full" if (i + 1) % group == 0 else "linear" for i in range(count)]
    dense = config.get("first_k_dense_replace") or 0
    mixers = ["mla" if str(kind).startswith("full") else "kda" for kind in types]
    return tuple(f"{mixer} {'mlp' if i < dense else 'moe'}" for i, mixer in enumerate(mixers))


FAMILY = Family(
    name="bailing_hybrid",
    model_types=("bailing_hybrid",),
    entries=(
        one("embed", "model.word_embeddings.weight"),
        *(one(f"{_K}.{part}", f"{_AT}.{name}", when="kda") for part, (name, _) in _NAMES.items()),
        one(
            grouped("heads", "layers.*.mla.q.nope", "layers.*.mla.q.rope"),
            f"{_AT}.q_proj.weight",
            when="mla",
        ),
        one("layers.*.mla.kv_a", f"{_AT}.kv_a_proj_with_mqa.weight"),
        one("layers.*.mla.kv_a_norm", f"{_AT}.kv_a_layernorm.weight"),
        one(grouped("heads", "layers.*.mla.kv_b.k", "layers.*.mla.kv_b.v"), f"{_AT}.kv_b_proj.weight"),
        one("layers.*.mla.gate", f"{_AT}.g_proj.weight", when="mla"),
        one("layers.*.mla.o", f"{_AT}.dense.weight", when="mla"),
        *NORMS,
        *MLP,
        *ROUTED,
        one("layers.*.moe.router_bias", "model.layers.*.mlp.gate.expert_bias"),
        *shared(when="num_shared_experts"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
    slots={
        **{f"{_K}.{part}": axes for part, (_, axes) in _NAMES.items()},
        "layers.*.mla.gate": "heads,hidden",
    },
)
