"""Ministral: Mistral with a window on some layers; Ministral 3: with yarn, and a query scale by position."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.template import decoder

FAMILY = Family(
    name="ministral",
    model_types=("ministral", "ministral3"),
    entries=(EMBED, *attention(False, False), *NORMS, *MLP, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder("MinistralForCausalLM", assumed={"rms_norm_eps": 1e-5}, by_name=True),
)
