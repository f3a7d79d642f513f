"""Phi-3, Phi-3.5 and Phi-4: query, key and value are one tensor, gate and up another."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import concat, one

QKV = concat("layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")
GATE_UP = concat("layers.*.mlp.gate", "layers.*.mlp.up")
FUSED_MLP = (
    one(GATE_UP, "model.layers.*.mlp.gate_up_proj.weight"),
    one("layers.*.mlp.down", "model.layers.*.mlp.down_proj.weight"),
)

FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    entries=(
        EMBED,
        one(QKV, "model.layers.*.self_attn.qkv_proj.weight"),
        one("layers.*.attn.o", "model.layers.*.self_attn.o_proj.weight"),
        *NORMS,
        *FUSED_MLP,
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "Phi3ForCausalLM",
        {"sliding_window": "window", "partial_rotary_factor": "partial_rotary?"},
        without=("head_dim",),
        assumed={"sliding_window": None, "partial_rotary_factor": 1.0, "rms_norm_eps": 1e-5},
        like=("llama", "mistral"),
    ),
)
