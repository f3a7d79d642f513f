"""MiniCPM 1 and 2 (openbmb, code on the hub): Llama's names, tied unless the config says otherwise."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.template import decoder

FAMILY = Family(
    name="minicpm",
    model_types=("minicpm",),
    entries=(EMBED, *attention("attention_bias", "attention_bias"), *NORMS, *MLP, *ENDS),
    flags={"tie_word_embeddings": True},
    ignored=IGNORED,
    template=decoder(
        "MiniCPMForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias",
            "scale_emb": "scale_emb",
            "scale_depth": "scale_depth",
            "dim_model_base": "dim_model_base",
        },
        without=("head_dim",),
        fixed={"multipliers": True},
        assumed={"attention_bias": False, "tie_word_embeddings": True},
    ),
)
