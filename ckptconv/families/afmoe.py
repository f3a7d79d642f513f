"""AFMoE (Trinity): norms around every block, a gate of attention's output, the experts of DeepSeek-V3.

transformers 5.23, ``modeling_afmoe.py``.
"""

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, attention, gated
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

_AT, _MLP = "model.layers.*", "model.layers.*.mlp"


def _kinds(config: Config) -> list[str]:
    dense = config.get("num_dense_layers") or 0
    return [f"attn {'mlp' if i < dense else 'moe'}" for i in range(dims(config).get("layers", 0))]


def _sizes(config: Config) -> dict[str, int]:
    return {
        "shared_inner": (config.get("num_shared_experts") or 0) * (config.get("moe_intermediate_size") or 0)
    }


FAMILY = Family(
    name="afmoe",
    model_types=("afmoe",),
    entries=(
        EMBED,
        *attention("attention_bias", False),
        one("layers.*.attn.out_gate", f"{_AT}.self_attn.gate_proj.weight"),
        *QK_NORMS,
        one("layers.*.attn_norm", f"{_AT}.input_layernorm.weight"),
        one("layers.*.attn_post_norm", f"{_AT}.post_attention_layernorm.weight"),
        one("layers.*.mlp_norm", f"{_AT}.pre_mlp_layernorm.weight"),
        one("layers.*.mlp_post_norm", f"{_AT}.post_mlp_layernorm.weight"),
        *MLP,
        one("layers.*.moe.router", f"{_MLP}.router.gate.weight"),
        one("layers.*.moe.router_bias", f"{_MLP}.expert_bias"),
        *gated("layers.*.moe.experts.{e}", f"{_MLP}.experts.{{e}}"),
        *gated("layers.*.moe.shared", f"{_MLP}.shared_experts"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    slots={"layers.*.attn.out_gate": "heads*head_dim,hidden"},
    pinned=(r".*\.mlp\.expert_bias",),
    sizes=_sizes,
    kinds=_kinds,
    template=decoder("AfmoeForCausalLM", assumed={"rms_norm_eps": 1e-5}, by_name=True),
)
