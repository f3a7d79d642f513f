"""Seed-OSS: Llama whose output projection has a bias flag of its own."""

from ckptconv.families.base import Family
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.template import decoder

FAMILY = Family(
    name="seed_oss",
    model_types=("seed_oss",),
    entries=(EMBED, *attention("attention_bias", "attention_out_bias"), *NORMS, *BIASED_MLP, *ENDS),
    flags={"tie_word_embeddings": False, "attention_bias": True, "head_dim": 128},
    ignored=IGNORED,
    template=decoder(
        "SeedOssForCausalLM",
        {"attention_bias": "qkv_bias", "attention_out_bias": "o_bias", "mlp_bias": "linear_bias"},
        assumed={
            "attention_bias": True,
            "attention_out_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": 1e-6,
        },
        like=("llama", "qwen2"),
    ),
)
