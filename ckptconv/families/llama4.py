"""Llama 4 (text): experts together and transposed, a shared one, layers without positions.

transformers 5.23, ``modeling_llama4.py``.
"""

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention, gated
from ckptconv.families.template import decoder
from ckptconv.slots import concat, one, stacked, transposed

_FF, _E = "model.layers.*.feed_forward", "layers.*.moe.experts.{e}"


def _kinds(config: Config) -> list[str]:
    layers, step = dims(config).get("layers", 0), config.get("interleave_moe_layer_step") or 1
    sparse = config.get("moe_layers")
    sparse = list(range(step - 1, layers, step)) if sparse is None else sparse
    return [f"attn {'moe' if i in sparse else 'mlp'}" for i in range(layers)]


def _sizes(config: Config) -> dict[str, int]:
    inner = config.get("intermediate_size") or 0
    dense = config.get("intermediate_size_mlp") or inner
    return {"inner": dense, "expert_inner": inner, "shared_inner": inner}


FAMILY = Family(
    name="llama4_text",
    model_types=("llama4_text",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *NORMS,
        *gated("layers.*.mlp", _FF),
        one("layers.*.moe.router", f"{_FF}.router.weight"),
        one(stacked(transposed(concat(f"{_E}.gate", f"{_E}.up"))), f"{_FF}.experts.gate_up_proj"),
        one(stacked(transposed(f"{_E}.down")), f"{_FF}.experts.down_proj"),
        *gated("layers.*.moe.shared", f"{_FF}.shared_expert"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False, "head_dim": 128},
    ignored=IGNORED,
    sizes=_sizes,
    kinds=_kinds,
    template=decoder(
        "Llama4ForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias",
            "no_rope_layers": "rotary_layers?",
            "intermediate_size": "expert_inner",
            "intermediate_size_mlp": "inner",
            "num_local_experts": "experts",
            "num_experts_per_tok": "topk",
        },
        fixed={
            "interleaved": True,
            "score_function": "sigmoid",
            "norm_topk": False,
            "moe_apply_probs_on_input": True,
        },
        assumed={"attention_bias": False, "rms_norm_eps": 1e-5},
        by_name=True,
    ),
)
