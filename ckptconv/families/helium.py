"""Helium and CWM: Llama's tensors; one rotates neighbouring pairs, the other has windows on most layers."""

from ckptconv.families.base import Family
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.template import decoder

FAMILY = Family(
    name="helium",
    model_types=("helium", "cwm"),
    entries=(EMBED, *attention("attention_bias", False), *NORMS, *BIASED_MLP, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder("HeliumForCausalLM", assumed={"rms_norm_eps": 1e-8}, by_name=True),
)
