"""Arcee (AFM): Llama with an MLP of squared relu, without a gate."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.template import decoder
from ckptconv.slots import linear

_MLP = "model.layers.*.mlp"
FAMILY = Family(
    name="arcee",
    model_types=("arcee",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *NORMS,
        *linear("layers.*.mlp.up", f"{_MLP}.up_proj", bias="mlp_bias"),
        *linear("layers.*.mlp.down", f"{_MLP}.down_proj", bias="mlp_bias"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "ArceeForCausalLM",
        {"attention_bias": "qkv_bias o_bias", "mlp_bias": "linear_bias"},
        fixed={"gated": False},
        assumed={"attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-5, "hidden_act": "relu2"},
        by_name=True,
    ),
)
