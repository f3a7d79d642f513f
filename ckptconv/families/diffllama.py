"""DiffLlama: Llama whose attention is the difference of two (5.23, ``modeling_diffllama.py``)."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.template import decoder
from ckptconv.slots import one

_LAMBDAS = tuple(f"lambda_{of}{i}" for of in "qk" for i in (1, 2))
FAMILY = Family(
    name="diffllama",
    model_types=("diffllama",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *(one(f"layers.*.attn.{name}", f"model.layers.*.self_attn.{name}") for name in _LAMBDAS),
        *NORMS,
        *MLP,
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    slots={f"layers.*.attn.{name}": "head_dim" for name in _LAMBDAS},
    template=decoder("DiffLlamaForCausalLM", assumed={"rms_norm_eps": 1e-5}, by_name=True),
)
