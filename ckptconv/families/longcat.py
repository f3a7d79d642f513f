"""LongCat-Flash: two latent attentions and MLPs in a layer, and experts, some of which do nothing.

transformers 5.23, ``modeling_longcat_flash.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, gated
from ckptconv.slots import Entry, one

_AT = "model.layers.*"
_ATTENTION = {
    "q_a": ("q_a_proj", "q_rank,hidden"),
    "q_a_norm": ("q_a_layernorm", "q_rank"),
    "q_b": ("q_b_proj", "heads*nope+heads*rope,q_rank"),
    "kv_a": ("kv_a_proj_with_mqa", "kv_rank+rope,hidden"),
    "kv_a_norm": ("kv_a_layernorm", "kv_rank"),
    "kv_b": ("kv_b_proj", "heads*nope+heads*v_dim,kv_rank"),
    "o": ("o_proj", "hidden,heads*v_dim"),
}
_MLP = {"norm": "hidden", "gate": "inner,hidden", "up": "inner,hidden", "down": "hidden,inner"}


def _half(i: int) -> tuple[Entry, ...]:
    """Declare one of the two attentions and MLPs of a layer."""
    return (
        one(f"layers.*.mla{i}.norm", f"{_AT}.input_layernorm.{i}.weight"),
        *(
            one(f"layers.*.mla{i}.{slot}", f"{_AT}.self_attn.{i}.{name}.weight")
            for slot, (name, _) in _ATTENTION.items()
        ),
        one(f"layers.*.mlp{i}.norm", f"{_AT}.post_attention_layernorm.{i}.weight"),
        *gated(f"layers.*.mlp{i}", f"{_AT}.mlps.{i}"),
    )


def _sizes(config: Config) -> Mapping[str, int]:
    """Scores are given to experts that do nothing too."""
    experts = config.get("n_routed_experts") or 0
    return {
        "inner": config.get("ffn_hidden_size") or 0,
        "expert_inner": config.get("expert_ffn_hidden_size") or 0,
        "choices": experts + (config.get("zero_expert_num") or 0),
    }


FAMILY = Family(
    name="longcat_flash",
    model_types=("longcat_flash",),
    entries=(
        EMBED,
        *_half(0),
        *_half(1),
        one("layers.*.moe.choice", f"{_AT}.mlp.router.classifier.weight"),
        one("layers.*.moe.choice_bias", f"{_AT}.mlp.router.e_score_correction_bias"),
        *gated("layers.*.moe.experts.{e}", f"{_AT}.mlp.experts.{{e}}"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    # transformers 5.23 makes halves of experts that do nothing, and saves them.
    ignored=(*IGNORED, r"model\.layers\.\d+\.mlp\.experts\.\d+\.(?:gate|up)_proj\.weight"),
    sizes=_sizes,
    kinds=lambda config: ("mla0 mla1 mlp0 mlp1 moe",) * (config.get("num_layers") or 0),
    slots={
        **{f"layers.*.mla{i}.{slot}": axes for i in (0, 1) for slot, (_, axes) in _ATTENTION.items()},
        **{f"layers.*.mla{i}.norm": "hidden" for i in (0, 1)},
        **{f"layers.*.mlp{i}.{slot}": axes for i in (0, 1) for slot, axes in _MLP.items()},
        "layers.*.moe.choice": "choices,hidden",
        "layers.*.moe.choice_bias": "choices",
    },
)
