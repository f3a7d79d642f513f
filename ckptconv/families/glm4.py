"""GLM-4: ``glm`` (9B) and ``glm4`` (0414), which has norms after attention and MLP too."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.phi3 import FUSED_MLP
from ckptconv.families.template import decoder
from ckptconv.slots import one

_ATTENTION = attention("attention_bias", False)
_FLAGS = {"tie_word_embeddings": False, "attention_bias": True, "head_dim": 128}

_KEYS = {"attention_bias": "qkv_bias", "partial_rotary_factor": "partial_rotary"}
_ASSUMED = {"attention_bias": True, "partial_rotary_factor": 0.5, "head_dim": 128}
GLM = Family(
    name="glm",
    model_types=("glm",),
    entries=(EMBED, *_ATTENTION, *NORMS, *FUSED_MLP, *ENDS),
    flags=_FLAGS,
    ignored=IGNORED,
    template=decoder("GlmForCausalLM", _KEYS, fixed={"interleaved": True}, assumed=_ASSUMED),
)
GLM4 = Family(
    name="glm4",
    model_types=("glm4",),
    entries=(
        EMBED,
        *_ATTENTION,
        one("layers.*.attn_post_norm", "model.layers.*.post_self_attn_layernorm.weight"),
        *NORMS,
        *FUSED_MLP,
        one("layers.*.mlp_post_norm", "model.layers.*.post_mlp_layernorm.weight"),
        *ENDS,
    ),
    flags=_FLAGS,
    ignored=IGNORED,
    template=decoder(
        "Glm4ForCausalLM",
        _KEYS,
        fixed={"interleaved": True, "post_norm": True},
        assumed=_ASSUMED,
        carried=True,
    ),
)
