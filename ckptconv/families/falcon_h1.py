"""Falcon-H1: attention and Mamba 2 beside each other in every layer (transformers 5.23)."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, IGNORED, attention
from ckptconv.families.mamba import FEED_FORWARD, FEED_FORWARD_NORMS, FINAL, HYBRID_KEYS, mamba_sizes, mixer

FAMILY = Family(
    name="falcon_h1",
    model_types=("falcon_h1",),
    entries=(
        EMBED,
        *mixer(
            "model.layers.*.mamba",
            bias="mamba_proj_bias",
            conv_bias="mamba_conv_bias",
            norm="mamba_rms_norm",
        ),
        *attention("attention_bias", "attention_bias"),
        *FEED_FORWARD_NORMS,
        *FEED_FORWARD,
        *FINAL,
    ),
    flags={"tie_word_embeddings": False, "mamba_conv_bias": True},
    ignored=IGNORED,
    sizes=mamba_sizes(HYBRID_KEYS),
)
