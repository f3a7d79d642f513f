"""LFM3: LFM2 with a gate for each head and norms behind each part (transformers 5.23)."""

from __future__ import annotations

from dataclasses import replace

from ckptconv.families.lfm2 import LFM2
from ckptconv.slots import linear, one

_AT = "model.layers.*"
_RENAMED = {"out_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm"}


def _renamed(name: str) -> str:
    at, _, rest = name.partition("self_attn.")
    module, _, leaf = rest.partition(".")
    return f"{at}self_attn.{_RENAMED.get(module, module)}.{leaf}" if rest else name


FAMILY = replace(
    LFM2,
    name="lfm3",
    model_types=("lfm3",),
    entries=(
        *(replace(e, name=_renamed(e.name)) for e in LFM2.entries),
        *linear(
            "layers.*.attn.head_gate", f"{_AT}.self_attn.gate_proj", bias=False, when="use_attention_gate"
        ),
        one("layers.*.attn_post_norm", f"{_AT}.post_operator_norm.weight", when="use_sandwich_norm"),
        one("layers.*.mlp_post_norm", f"{_AT}.post_ffn_norm.weight", when="use_sandwich_norm"),
    ),
    flags={"tie_word_embeddings": True, "use_attention_gate": True, "use_sandwich_norm": True},
    sizes=lambda config: {"conv_kernel": config.get("conv_L_cache") or 7},
    slots={**LFM2.slots, "layers.*.attn.head_gate": "heads,hidden"},
)
