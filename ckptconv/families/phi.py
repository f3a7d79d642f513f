"""Phi 1, 1.5 and 2: attention and MLP side by side after one norm, biases everywhere, also of the head."""

from dataclasses import replace

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, IGNORED
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

_AT = "model.layers.*"
_QK_NORMS = (
    *linear("layers.*.attn.q_norm", f"{_AT}.self_attn.q_layernorm", bias=True),
    *linear("layers.*.attn.k_norm", f"{_AT}.self_attn.k_layernorm", bias=True),
)
FAMILY = Family(
    name="phi",
    model_types=("phi",),
    entries=(
        EMBED,
        *linear("layers.*.attn_norm", f"{_AT}.input_layernorm", bias=True),
        *(e for p in "qkv" for e in linear(f"layers.*.attn.{p}", f"{_AT}.self_attn.{p}_proj", bias=True)),
        *linear("layers.*.attn.o", f"{_AT}.self_attn.dense", bias=True),
        *(replace(entry, when="qk_layernorm") for entry in _QK_NORMS),
        *linear("layers.*.mlp.up", f"{_AT}.mlp.fc1", bias=True),
        *linear("layers.*.mlp.down", f"{_AT}.mlp.fc2", bias=True),
        *linear("final_norm", "model.final_layernorm", bias=True),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
        one("head.bias", "lm_head.bias"),
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "PhiForCausalLM",
        {"layer_norm_eps": "norm_eps", "partial_rotary_factor": "partial_rotary", "qk_layernorm": "qk_norm"},
        without=("rms_norm_eps", "head_dim"),
        fixed={
            "norm_kind": "LayerNorm",
            "gated": False,
            "linear_bias": True,
            "qkv_bias": True,
            "o_bias": True,
        },
        assumed={
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": False,
            "hidden_act": "gelu_new",
        },
        by_name=True,
    ),
)
