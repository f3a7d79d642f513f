"""Cohere (Command R), Cohere 2 and its experts: attention and MLP side by side after one norm."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.moe import ROUTED
from ckptconv.families.template import decoder

_ATTENTION = attention("attention_bias", "attention_bias")
_FLAGS = {"tie_word_embeddings": True}
_KEYS = {"attention_bias": "qkv_bias o_bias", "layer_norm_eps": "norm_eps"}
_FIXED = {"norm_kind": "LayerNorm", "interleaved": True}
_ASSUMED = {"attention_bias": False, "layer_norm_eps": 1e-5, "tie_word_embeddings": True}
DENSE = Family(
    name="cohere",
    model_types=("cohere", "cohere2"),
    entries=(EMBED, *_ATTENTION, NORMS[0], *MLP, *ENDS),
    flags=_FLAGS,
    ignored=IGNORED,
    template=decoder(
        "CohereForCausalLM",
        _KEYS,
        without=("rms_norm_eps", "head_dim"),
        fixed=_FIXED,
        assumed=_ASSUMED,
        by_name=True,
    ),
)
MOE = Family(
    name="cohere2_moe",
    model_types=("cohere2_moe",),
    entries=(EMBED, *_ATTENTION, NORMS[0], *MLP, *ROUTED, *ENDS),
    flags=_FLAGS,
    ignored=IGNORED,
    template=decoder(
        "Cohere2MoeForCausalLM",
        {
            **_KEYS,
            "intermediate_size": "expert_inner",
            "num_experts": "experts",
            "num_experts_per_tok": "topk",
            "norm_topk_prob": "norm_topk",
        },
        without=("rms_norm_eps", "head_dim"),
        fixed=_FIXED,
        assumed=_ASSUMED,
        by_name=True,
    ),
)
