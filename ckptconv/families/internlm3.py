"""InternLM3 (code on the hub): Llama, with biases of query, key and value and of all others apart."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, gated
from ckptconv.families.template import decoder
from ckptconv.slots import linear

_AT = "model.layers.*.self_attn"
FAMILY = Family(
    name="internlm3",
    model_types=("internlm3",),
    entries=(
        EMBED,
        *(e for part in "qkvo" for e in linear(f"layers.*.attn.{part}", f"{_AT}.{part}_proj", bias=None)),
        *NORMS,
        *gated("layers.*.mlp", "model.layers.*.mlp", bias=None),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder("InternLM3ForCausalLM", assumed={"rms_norm_eps": 1e-6}, by_name=True),
)
