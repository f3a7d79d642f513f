"""Mistral: Llama without biases."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.template import decoder

FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    entries=(EMBED, *attention(False, False), *NORMS, *MLP, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "MistralForCausalLM",
        {"sliding_window": "window"},
        assumed={"sliding_window": 4096, "rms_norm_eps": 1e-6},
        like=("llama",),
    ),
)
