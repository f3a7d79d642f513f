"""Doge: attention with a mask it computes, and scaled residuals (transformers 5.23, ``modeling_doge.py``)."""

from ckptconv.families.base import Family
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

_AT = "model.layers.*"
FAMILY = Family(
    name="doge",
    model_types=("doge",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *QK_NORMS,
        one("layers.*.attn.decay", f"{_AT}.self_attn.A"),
        one("layers.*.attn.dt", f"{_AT}.self_attn.dt_proj.weight"),
        *NORMS,
        one("layers.*.attn_residual", f"{_AT}.input_residual"),
        *BIASED_MLP,
        one("layers.*.mlp_residual", f"{_AT}.post_attention_residual"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    slots={
        "layers.*.attn.decay": "kv_heads",
        "layers.*.attn.dt": "kv_heads,kv_heads*head_dim",
        "layers.*.attn_residual": "hidden",
        "layers.*.mlp_residual": "hidden",
    },
    # Its experts, looked up by keys, have no place here: a model with them is refused by their names.
    sizes=lambda config: {"experts": 0},
    template=decoder("DogeForCausalLM", without=("head_dim",), assumed={"rms_norm_eps": 1e-6}, by_name=True),
)
