"""Apertus: norms of query and key, and an activation (xIELU) that is learned in each layer (5.23)."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, attention
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

_AT = "model.layers.*"
_LEARNED = {"alpha_n": "1", "alpha_p": "1", "beta": "", "eps": ""}
FAMILY = Family(
    name="apertus",
    model_types=("apertus",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *QK_NORMS,
        one("layers.*.attn_norm", f"{_AT}.attention_layernorm.weight"),
        one("layers.*.mlp_norm", f"{_AT}.feedforward_layernorm.weight"),
        *linear("layers.*.mlp.up", f"{_AT}.mlp.up_proj", bias=False),
        *linear("layers.*.mlp.down", f"{_AT}.mlp.down_proj", bias=False),
        *(one(f"layers.*.mlp.{name}", f"{_AT}.mlp.act_fn.{name}") for name in _LEARNED),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    slots={f"layers.*.mlp.{name}": shape for name, shape in _LEARNED.items()},
    template=decoder("ApertusForCausalLM", without=("head_dim",), fixed={"gated": False}, by_name=True),
)
