"""HyperCLOVA X: Granite's factors, and norms after attention and MLP."""

from dataclasses import replace
from functools import partial

from ckptconv.families.base import Family
from ckptconv.families.granite import FACTORS, factors
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.template import decoder
from ckptconv.slots import one

_POST_NORMS = (
    one("layers.*.attn_post_norm", "model.layers.*.post_norm1.weight"),
    one("layers.*.mlp_post_norm", "model.layers.*.post_norm2.weight"),
)
FAMILY = Family(
    name="hyperclovax",
    model_types=("hyperclovax",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *NORMS,
        *BIASED_MLP,
        *(replace(entry, when="use_post_norm") for entry in _POST_NORMS),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False, "use_post_norm": True},
    ignored=IGNORED,
    beyond=partial(factors, scale=None),
    template=decoder(
        "HyperCLOVAXForCausalLM",
        {**FACTORS, "attention_bias": "qkv_bias o_bias", "mlp_bias": "linear_bias"},
        assumed={"attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-5},
        by_name=True,
    ),
)
