"""Kimi Linear: delta nets whose gates decay each channel, or latent attention; routed experts.

Names are those of the hub where config.json is (it has ``linear_attn_config``), else those that transformers
5.23 saves: it calls the dense MLP as it calls experts (``conversion_mapping.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckptconv.families.base import Config, Family
from ckptconv.families.deepseek import LATENT
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, gated
from ckptconv.slots import one

_AT = "model.layers.*"
_HUB = "linear_attn_config"
_WIDE = "kda_heads*kda_dim"
_KDA = {
    "q": ("q_proj.weight", f"{_WIDE},hidden"),
    "k": ("k_proj.weight", f"{_WIDE},hidden"),
    "v": ("v_proj.weight", f"{_WIDE},hidden"),
    "conv.q": ("q_conv1d.weight", f"{_WIDE},1,kda_kernel"),
    "conv.k": ("k_conv1d.weight", f"{_WIDE},1,kda_kernel"),
    "conv.v": ("v_conv1d.weight", f"{_WIDE},1,kda_kernel"),
    "a_log": ("A_log", "1,1,kda_heads,1"),
    "dt_bias": ("dt_bias", _WIDE),
    "forget.a": ("f_a_proj.weight", "kda_dim,hidden"),
    "forget.b": ("f_b_proj.weight", f"{_WIDE},kda_dim"),
    "beta": ("b_proj.weight", "kda_heads,hidden"),
    "gate.a": ("g_a_proj.weight", "kda_dim,hidden"),
    "gate.b": ("g_b_proj.weight", f"{_WIDE},kda_dim"),
    "norm": ("o_norm.weight", "kda_dim"),
    "o": ("o_proj.weight", f"hidden,{_WIDE}"),
}
_MOE = f"{_AT}.block_sparse_moe"


def _linear(config: Config) -> Mapping[str, object]:
    found = config.get(_HUB)
    return found if isinstance(found, Mapping) else {}


def _sizes(config: Config) -> Mapping[str, int]:
    own = _linear(config)
    keys = {
        "kda_heads": ("num_heads", "linear_num_heads"),
        "kda_dim": ("head_dim", "linear_head_dim"),
        "kda_kernel": ("short_conv_kernel_size", "linear_conv_kernel_dim"),
    }
    found = {n: own.get(hub) or config.get(saved) or 0 for n, (hub, saved) in keys.items()}
    shared = (config.get("num_shared_experts") or 0) * (config.get("moe_intermediate_size") or 0)
    return {n: v for n, v in found.items() if isinstance(v, int)} | {"shared_inner": shared, "mtp": 0}


def _kinds(config: Config) -> tuple[str, ...]:
    count = config.get("num_hidden_layers") or 0
    full, types = _linear(config).get("full_attn_layers"), config.get("layer_types")
    if isinstance(full, list):  # counted from 1
        mixers = ["mla" if i + 1 in full else "kda" for i in range(count)]
    else:
        mixers = ["mla" if str(kind).startswith("full") else "kda" for kind in types or ()]
    dense, every = config.get("first_k_dense_replace") or 0, config.get("moe_layer_freq") or 1
    sparse = [i >= dense and i % every == 0 for i in range(count)]
    if isinstance(kinds := config.get("mlp_layer_types"), list):
        sparse = [kind == "sparse" for kind in kinds]
    return tuple(f"{m} {'moe' if s else 'mlp'}" for m, s in zip(mixers, sparse, strict=False))


FAMILY = Family(
    name="kimi_linear",
    model_types=("kimi_linear",),
    entries=(
        EMBED,
        *(one(f"layers.*.kda.{s}", f"{_AT}.self_attn.{name}", when="kda") for s, (name, _) in _KDA.items()),
        *(replace(e, when=f"mla {e.when or ''}".strip()) for e in LATENT),
        *NORMS,
        *(replace(e, when=_HUB) for e in gated("layers.*.mlp", f"{_AT}.mlp")),
        *(replace(e, when=f"!{_HUB}") for e in gated("layers.*.mlp", _MOE)),
        one("layers.*.moe.router", f"{_MOE}.gate.weight"),
        one("layers.*.moe.router_bias", f"{_MOE}.gate.e_score_correction_bias"),
        *gated("layers.*.moe.experts.{e}", f"{_MOE}.experts.{{e}}", "w1 w3 w2"),
        *(
            replace(e, when="num_shared_experts")
            for e in gated("layers.*.moe.shared", f"{_MOE}.shared_experts")
        ),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
    slots={f"layers.*.kda.{s}": axes for s, (_, axes) in _KDA.items()},
)
