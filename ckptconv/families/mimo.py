"""MiMo 7B (code on the hub): Qwen2, and layers for multi-token prediction under a name of their own.

Their projection takes the hidden states before the embedding, Megatron's after it (XiaomiMiMo/MiMo,
``modeling_mimo.py``; Megatron-Bridge, ``mimo/mimo_bridge.py``).
"""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.template import decoder
from ckptconv.slots import one, predicting, swapped

_LAYER = (*attention(True, False), *NORMS, *MLP)
_MTP = "model.mtp_layers.*"
FAMILY = Family(
    name="mimo",
    model_types=("mimo",),
    entries=(
        EMBED,
        *_LAYER,
        *ENDS,
        *predicting(_LAYER, "model.layers.*.", f"{_MTP}."),
        one("mtp.*.enorm", f"{_MTP}.token_layernorm.weight"),
        one("mtp.*.hnorm", f"{_MTP}.hidden_layernorm.weight"),
        one(swapped("mtp.*.eh_proj"), f"{_MTP}.input_proj.weight"),
        one("mtp.*.norm", f"{_MTP}.final_layernorm.weight"),
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "MiMoForCausalLM",
        {"num_nextn_predict_layers": "mtp?"},
        fixed={"qkv_bias": True},
        assumed={"rms_norm_eps": 1e-5, "num_nextn_predict_layers": 0},
        by_name=True,
    ),
)
