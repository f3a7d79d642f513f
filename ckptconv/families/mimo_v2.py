"""MiMo-V2-Flash: attention over all or over a window, each with heads of its own, and routed experts.

transformers 5.23, ``modeling_mimo_v2_flash.py``. Values may be narrower than keys. Of the hub's config
``hybrid_layer_pattern`` says which layers have a window, ``moe_layer_freq`` which have experts.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.deepseek import ROUTER_BIAS
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS
from ckptconv.families.moe import ROUTED
from ckptconv.slots import linear, one

_AT = "model.layers.*.self_attn"
# Slots of both kinds are this family's own: a layer's heads are as many as its kind has.
_KINDS = {"all": "", "near": "swa_"}


def _sizes(config: Config) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for kind, key in _KINDS.items():
        heads = config.get(f"{key}num_attention_heads") or config.get("num_attention_heads") or 0
        # Of the hub's config a number of its own; transformers has twice as many where there is a window.
        groups = (config.get("num_key_value_heads") or heads) * (2 if kind == "near" else 1)
        groups = (config.get(f"{key}num_key_value_heads") if key else None) or groups
        dim = config.get(f"{key}head_dim") or config.get("head_dim") or 0
        value = config.get(f"{key}v_head_dim") or config.get("v_head_dim") or dim
        found |= {
            f"{kind}_q": heads * dim, f"{kind}_k": groups * dim, f"{kind}_v": groups * value,
            f"{kind}_o": heads * value, f"{kind}_heads": heads,
        }  # fmt: skip
    return {**found, "mtp": 0}


def _kinds(config: Config) -> tuple[str, ...]:
    count = config.get("num_hidden_layers") or 0
    pattern, types = config.get("hybrid_layer_pattern"), config.get("layer_types")
    near = [bool(n) for n in pattern] if isinstance(pattern, list) else []
    near = near or [str(kind).startswith("sliding") for kind in types or ()]
    every, mlps = config.get("moe_layer_freq"), config.get("mlp_layer_types")
    sparse = [bool(n) for n in every] if isinstance(every, list) else [True] * count
    sparse = [kind == "sparse" for kind in mlps] if isinstance(mlps, list) else sparse
    return tuple(
        f"{'near' if n else 'all'} {'moe' if s else 'mlp'}" for n, s in zip(near, sparse, strict=False)
    )


def _slots() -> dict[str, str]:
    return {
        f"layers.*.{kind}.{slot}": axes
        for kind in _KINDS
        for slot, axes in {
            "q": f"{kind}_q,hidden",
            "k": f"{kind}_k,hidden",
            "v": f"{kind}_v,hidden",
            "o": f"hidden,{kind}_o",
            "sinks": f"{kind}_heads",
        }.items()
    }


FAMILY = Family(
    name="mimo_v2_flash",
    model_types=("mimo_v2_flash",),
    entries=(
        EMBED,
        *(
            entry
            for kind in _KINDS
            for slot in "qkvo"
            for entry in linear(f"layers.*.{kind}.{slot}", f"{_AT}.{slot}_proj", bias=False, when=kind)
        ),
        one("layers.*.near.sinks", f"{_AT}.attention_sink_bias", when="near"),
        *NORMS,
        *MLP,
        *ROUTED,
        ROUTER_BIAS,
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
    slots=_slots(),
)
