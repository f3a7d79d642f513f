"""Nemotron-H and Nemotron 3: every layer is one of Mamba 2, attention, an MLP without gate, or experts.

transformers 5.23, ``modeling_nemotron_h.py``; ``hybrid_override_pattern`` is how published configs say it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.mamba import mamba_sizes, mixer
from ckptconv.slots import linear, one

_AT = "backbone.layers.*.mixer"
_KINDS = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), "mamba"),
    **dict.fromkeys(("*", "attention", "full_attention"), "attn"),
    **dict.fromkeys(("-", "mlp"), "mlp"),
    **dict.fromkeys(("E", "moe"), "moe"),
}
_E = "layers.*.moe.experts.{e}"


def _kinds(config: Config) -> tuple[str, ...]:
    pattern = config.get("layers_block_type") or config.get("layer_types")
    blocks = pattern or str(config.get("hybrid_override_pattern") or "").replace("|", "")
    return tuple(_KINDS.get(str(block), str(block)) for block in blocks)


def _sizes(config: Config) -> Mapping[str, int]:
    shared = config.get("moe_shared_expert_intermediate_size")
    read = mamba_sizes("mamba_num_heads mamba_head_dim n_groups ssm_state_size conv_kernel")
    own = {"layers": len(_kinds(config)), "shared_inner": shared if isinstance(shared, int) else 0}
    return {**read(config), **own, "mtp": 0}


FAMILY = Family(
    name="nemotron_h",
    model_types=("nemotron_h",),
    entries=(
        one("embed", "backbone.embeddings.weight"),
        one("layers.*.attn_norm", "backbone.layers.*.norm.weight", when="!mlp !moe"),
        one("layers.*.mlp_norm", "backbone.layers.*.norm.weight", when="!mamba !attn"),
        *mixer(_AT, bias="use_bias", conv_bias="use_conv_bias"),
        *linear("layers.*.attn.q", f"{_AT}.q_proj", bias="attention_bias"),
        *linear("layers.*.attn.k", f"{_AT}.k_proj", bias="attention_bias"),
        *linear("layers.*.attn.v", f"{_AT}.v_proj", bias="attention_bias"),
        *linear("layers.*.attn.o", f"{_AT}.o_proj", bias="attention_bias"),
        *linear("layers.*.mlp.up", f"{_AT}.up_proj", bias="mlp_bias"),
        *linear("layers.*.mlp.down", f"{_AT}.down_proj", bias="mlp_bias"),
        one("layers.*.moe.router", f"{_AT}.gate.weight"),
        one("layers.*.moe.router_bias", f"{_AT}.gate.e_score_correction_bias"),
        *linear("layers.*.moe.latent.down", f"{_AT}.fc1_latent_proj", bias=False, when="moe_latent_size"),
        *linear("layers.*.moe.latent.up", f"{_AT}.fc2_latent_proj", bias=False, when="moe_latent_size"),
        *linear(f"{_E}.up", f"{_AT}.experts.{{e}}.up_proj", bias="mlp_bias"),
        *linear(f"{_E}.down", f"{_AT}.experts.{{e}}.down_proj", bias="mlp_bias"),
        *linear("layers.*.moe.shared.up", f"{_AT}.shared_experts.up_proj", bias=False),
        *linear("layers.*.moe.shared.down", f"{_AT}.shared_experts.down_proj", bias=False),
        one("final_norm", "backbone.norm_f.weight"),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": False, "use_conv_bias": True},
    ignored=(r"lm_head\.weight",),
    sizes=_sizes,
    kinds=_kinds,
)
