"""Gemma 1, and Gemma 2, which has norms after attention and MLP too.

Their norms multiply by one plus the stored weight (transformers 5.23, ``modeling_gemma2.py``).
"""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.template import decoder
from ckptconv.slots import one

_ATTENTION = attention("attention_bias", "attention_bias")
_FLAGS = {"tie_word_embeddings": True, "head_dim": 256}

_ASSUMED = {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256}
GEMMA = Family(
    name="gemma",
    model_types=("gemma",),
    entries=(EMBED, *_ATTENTION, *NORMS, *MLP, *ENDS),
    flags=_FLAGS,
    zero_centered=True,
    ignored=IGNORED,
    template=decoder(
        "GemmaForCausalLM",
        {"attention_bias": "qkv_bias o_bias"},
        fixed={"embed_scaled": True},
        assumed={"attention_bias": False, "rms_norm_eps": 1e-6, **_ASSUMED},
        carried=True,
    ),
)
GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2",),
    entries=(
        EMBED,
        one("layers.*.attn_norm", "model.layers.*.input_layernorm.weight"),
        *_ATTENTION,
        one("layers.*.attn_post_norm", "model.layers.*.post_attention_layernorm.weight"),
        one("layers.*.mlp_norm", "model.layers.*.pre_feedforward_layernorm.weight"),
        *MLP,
        one("layers.*.mlp_post_norm", "model.layers.*.post_feedforward_layernorm.weight"),
        *ENDS,
    ),
    flags=_FLAGS,
    zero_centered=True,
    ignored=IGNORED,
    template=decoder(
        "Gemma2ForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias",
            "hidden_activation": "activation",
            "sliding_window": "window",
            "layer_types": "layer_types?",
            "query_pre_attn_scalar": "query_pre_attn_scalar",
            "attn_logit_softcapping": "attn_softcap",
            "final_logit_softcapping": "logit_softcap",
        },
        without=("hidden_act",),
        fixed={"embed_scaled": True, "post_norm": True, "window_skip": 2},
        assumed={"attention_bias": False, "rms_norm_eps": 1e-6, **_ASSUMED},
        carried=True,
    ),
)
