"""Baichuan 1 and 2 (code on the hub): query, key and value are one tensor."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS
from ckptconv.families.phi3 import QKV
from ckptconv.families.template import decoder
from ckptconv.slots import one

FAMILY = Family(
    name="baichuan",
    model_types=("baichuan",),
    entries=(
        EMBED,
        one(QKV, "model.layers.*.self_attn.W_pack.weight"),
        one("layers.*.attn.o", "model.layers.*.self_attn.o_proj.weight"),
        *NORMS,
        *MLP,
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "BaichuanForCausalLM",
        {"model_max_length": "positions"},
        without=("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling"),
        fixed={"grouped": False, "rope_theta": 10000.0, "rope_scaling": None},
        like=("llama",),
    ),
)
