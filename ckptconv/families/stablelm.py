"""StableLM 2 and Persimmon: layer norms with biases and a part of each head rotated."""

from dataclasses import replace

from ckptconv.families.base import Family
from ckptconv.families.gpt_neox import QKV, ungrouped
from ckptconv.families.llama import EMBED, IGNORED, MLP, attention
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

_AT = "model.layers.*"
_NORMS = (
    *linear("layers.*.attn_norm", f"{_AT}.input_layernorm", bias=True),
    *linear("layers.*.mlp_norm", f"{_AT}.post_attention_layernorm", bias=True),
)
_HEAD = one("head", "lm_head.weight", when="!tie_word_embeddings")
_KEYS = {"layer_norm_eps": "norm_eps", "partial_rotary_factor": "partial_rotary"}
STABLELM = Family(
    name="stablelm",
    model_types=("stablelm",),
    entries=(
        EMBED,
        *attention("use_qkv_bias", False),
        *_NORMS[:2],
        *(replace(entry, when="!use_parallel_residual") for entry in _NORMS[2:]),
        *MLP,
        *linear("final_norm", "model.norm", bias=True),
        _HEAD,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "StableLmForCausalLM",
        {**_KEYS, "use_qkv_bias": "qkv_bias"},
        without=("rms_norm_eps", "head_dim"),
        fixed={"norm_kind": "LayerNorm"},
        assumed={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "use_qkv_bias": False},
        by_name=True,
    ),
)
PERSIMMON = Family(
    name="persimmon",
    model_types=("persimmon",),
    entries=(
        EMBED,
        *linear(QKV, f"{_AT}.self_attn.query_key_value", bias=True),
        *linear("layers.*.attn.o", f"{_AT}.self_attn.dense", bias=True),
        *(
            replace(entry, when="qk_layernorm")
            for part in "qk"
            for entry in linear(f"layers.*.attn.{part}_norm", f"{_AT}.self_attn.{part}_layernorm", bias=True)
        ),
        *_NORMS,
        *linear("layers.*.mlp.up", f"{_AT}.mlp.dense_h_to_4h", bias=True),
        *linear("layers.*.mlp.down", f"{_AT}.mlp.dense_4h_to_h", bias=True),
        *linear("final_norm", "model.final_layernorm", bias=True),
        _HEAD,
    ),
    flags={"tie_word_embeddings": False, "qk_layernorm": True},
    ignored=IGNORED,
    sizes=ungrouped,
    template=decoder(
        "PersimmonForCausalLM",
        {**_KEYS, "qk_layernorm": "qk_norm"},
        without=("rms_norm_eps", "head_dim", "num_key_value_heads"),
        fixed={
            "norm_kind": "LayerNorm",
            "gated": False,
            "linear_bias": True,
            "qkv_bias": True,
            "o_bias": True,
            "grouped": False,
        },
        assumed={
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": True,
            "hidden_act": "relu2",
        },
        by_name=True,
    ),
)
