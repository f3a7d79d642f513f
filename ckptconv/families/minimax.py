"""MiniMax-01: lightning attention, with decays it stores, or full attention; Mixtral's experts.

transformers 5.23, ``modeling_minimax.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention, gated
from ckptconv.slots import one

_AT = "model.layers.*"
_L = "layers.*.lightning"


def _kinds(config: Config) -> tuple[str, ...]:
    types = config.get("layer_types") or config.get("attn_type_list") or ()
    return tuple("attn moe" if kind in ("full_attention", 1) else "lightning moe" for kind in types)


def _sizes(config: Config) -> Mapping[str, int]:
    return {"block": config.get("block_size") or 256}


_WIDE = "heads*head_dim"
FAMILY = Family(
    name="minimax",
    model_types=("minimax",),
    entries=(
        EMBED,
        *attention(False, False),
        one(f"{_L}.qkv", f"{_AT}.self_attn.qkv_proj.weight"),
        one(f"{_L}.gate", f"{_AT}.self_attn.output_gate.weight"),
        one(f"{_L}.norm", f"{_AT}.self_attn.norm.weight"),
        one(f"{_L}.o", f"{_AT}.self_attn.out_proj.weight"),
        *(
            one(f"{_L}.{name}", f"{_AT}.self_attn.{name}")
            for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
        ),
        *NORMS,
        one("layers.*.moe.router", f"{_AT}.block_sparse_moe.gate.weight"),
        *gated("layers.*.moe.experts.{e}", f"{_AT}.block_sparse_moe.experts.{{e}}", "w1 w3 w2"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
    slots={
        f"{_L}.qkv": f"3*{_WIDE},hidden",
        f"{_L}.gate": f"{_WIDE},hidden",
        f"{_L}.norm": _WIDE,
        f"{_L}.o": f"hidden,{_WIDE}",
        f"{_L}.slope_rate": "heads,1,1",
        f"{_L}.query_decay": "heads,block,1",
        f"{_L}.key_decay": "heads,block,1",
        f"{_L}.diagonal_decay": "1,heads,block,block",
    },
)
