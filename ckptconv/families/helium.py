"""Helium and CWM: Llama's tensors; one rotates neighbouring pairs, the other has windows on most layers."""

from ckptconv.families.base import Family
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.template import decoder

_ENTRIES = (EMBED, *attention("attention_bias", False), *NORMS, *BIASED_MLP, *ENDS)
FAMILY = Family(
    name="helium",
    model_types=("helium",),
    entries=_ENTRIES,
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "HeliumForCausalLM", fixed={"interleaved": True}, assumed={"rms_norm_eps": 1e-8}, by_name=True
    ),
)
CWM = Family(
    name="cwm",
    model_types=("cwm",),
    entries=_ENTRIES,
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    beyond=lambda config: [f"a window of {config.get('sliding_window', 8192)} on most layers"],
    template=decoder("CwmForCausalLM", assumed={"rms_norm_eps": 1e-5}, by_name=True),
)
