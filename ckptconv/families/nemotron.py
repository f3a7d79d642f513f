"""Nemotron 3 and 4 (dense): layer norms stored without their 1, squared relu, half of each head rotated."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, IGNORED, attention
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

_AT = "model.layers.*"
FAMILY = Family(
    name="nemotron",
    model_types=("nemotron",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *linear("layers.*.attn_norm", f"{_AT}.input_layernorm", bias=True),
        *linear("layers.*.mlp_norm", f"{_AT}.post_attention_layernorm", bias=True),
        *linear("layers.*.mlp.up", f"{_AT}.mlp.up_proj", bias="mlp_bias"),
        *linear("layers.*.mlp.down", f"{_AT}.mlp.down_proj", bias="mlp_bias"),
        *linear("final_norm", "model.norm", bias=True),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    zero_centered=True,
    template=decoder(
        "NemotronForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias",
            "mlp_bias": "linear_bias",
            "norm_eps": "norm_eps",
            "partial_rotary_factor": "partial_rotary",
        },
        without=("rms_norm_eps",),
        fixed={"norm_kind": "LayerNorm", "gated": False},
        assumed={
            "attention_bias": False,
            "mlp_bias": False,
            "norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "hidden_act": "relu2",
        },
        carried=True,
    ),
)
