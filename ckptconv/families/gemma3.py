"""Gemma 3 (text): Gemma 2 with norms of query and key, two rotary bases; VaultGemma: no norms after."""

from ckptconv.families.base import Family
from ckptconv.families.gemma import GEMMA2
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, attention
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

_KEYS = {"attention_bias": "qkv_bias o_bias", "hidden_activation": "activation"}
_ASSUMED = {
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
}
GEMMA3 = Family(
    name="gemma3_text",
    model_types=("gemma3_text",),
    entries=(*GEMMA2.entries, *QK_NORMS),
    flags=GEMMA2.flags,
    ignored=IGNORED,
    zero_centered=True,
    template=decoder(
        "Gemma3ForCausalLM",
        _KEYS,
        without=("hidden_act",),
        fixed={"embed_scaled": True, "post_norm": True, "qk_norm": True},
        assumed=_ASSUMED,
        by_name=True,
    ),
)
VAULT = Family(
    name="vaultgemma",
    model_types=("vaultgemma",),
    entries=(
        EMBED,
        one("layers.*.attn_norm", "model.layers.*.input_layernorm.weight"),
        *attention("attention_bias", "attention_bias"),
        one("layers.*.mlp_norm", "model.layers.*.pre_feedforward_layernorm.weight"),
        *MLP,
        *ENDS,
    ),
    flags=GEMMA2.flags,
    ignored=IGNORED,
    zero_centered=True,
    template=decoder(
        "VaultGemmaForCausalLM",
        _KEYS,
        without=("hidden_act",),
        fixed={"embed_scaled": True},
        assumed=_ASSUMED,
        by_name=True,
    ),
)
