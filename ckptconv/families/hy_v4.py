"""HY V4: latent attention with an indexer, sinks and a gate; hyper-connections; experts stacked.

transformers 5.23, ``modeling_hy_v4.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckptconv.families.base import Config, Family
from ckptconv.families.deepseek import LATENT, ROUTER_BIAS
from ckptconv.families.dsa import INDEXER
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, gated
from ckptconv.slots import concat, one, stacked

_AT = "model.layers.*"
_NAMES = "linear_gate up_proj down_proj"
_E = "layers.*.moe.experts.{e}"
_HYPER = {"base": "2*hyper", "fn": "2*hyper,hyper*hidden", "scale": "2"}
_HEAD = {"base": "hyper", "fn": "hyper,hyper*hidden", "scale": "1"}


def _sizes(config: Config) -> Mapping[str, int]:
    shared = (config.get("n_shared_experts") or 0) * (config.get("moe_intermediate_size") or 0)
    return {"hyper": config.get("hc_mult") or 0, "shared_inner": shared, "mtp": 0}


def _kinds(config: Config) -> tuple[str, ...]:
    count, dense = config.get("num_hidden_layers") or 0, config.get("first_k_dense_replace") or 0
    types = config.get("mlp_layer_types")
    sparse = [k == "sparse" for k in types] if isinstance(types, list) else [i >= dense for i in range(count)]
    return tuple(f"mla mhc {'moe' if s else 'mlp'}" for s in sparse)


FAMILY = Family(
    name="hy_v4",
    model_types=("hy_v4",),
    entries=(
        EMBED,
        *LATENT,
        *INDEXER,
        one("layers.*.mla.sinks", f"{_AT}.self_attn.learnable_sink_param"),
        one("layers.*.mla.gate", f"{_AT}.self_attn.linear_gate.weight"),
        *NORMS,
        *gated("layers.*.mlp", f"{_AT}.mlp", _NAMES),
        one("layers.*.moe.router", f"{_AT}.mlp.gate.weight"),
        ROUTER_BIAS,
        one(stacked(concat(f"{_E}.gate", f"{_E}.up")), f"{_AT}.mlp.experts.gate_up_proj"),
        one(stacked(f"{_E}.down"), f"{_AT}.mlp.experts.down_proj"),
        *(
            replace(e, when="n_shared_experts")
            for e in gated("layers.*.moe.shared", f"{_AT}.mlp.shared_experts", _NAMES)
        ),
        *(
            one(f"layers.*.mhc.{where}.{part}", f"{_AT}.hc_pre.hc_{where}_layer.hc_{part}")
            for where in ("attn", "mlp")
            for part in _HYPER
        ),
        *(one(f"hc_head.{part}", f"model.hc_pre.hc_head.hc_head_{part}") for part in _HEAD),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
    slots={
        "layers.*.mla.sinks": "heads",
        "layers.*.mla.gate": "heads*v_dim,hidden",
        **{f"layers.*.mhc.{w}.{part}": axes for w in ("attn", "mlp") for part, axes in _HYPER.items()},
        **{f"hc_head.{part}": axes for part, axes in _HEAD.items()},
    },
)
