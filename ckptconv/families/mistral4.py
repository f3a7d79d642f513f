"""Mistral 4: DeepSeek-V3's attention with yarn, a softmax router, experts stacked (transformers 5.23)."""

from ckptconv.families.base import Family
from ckptconv.families.deepseek import LATENT, shared
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS
from ckptconv.slots import concat, one, stacked

_E = "layers.*.moe.experts.{e}"
_AT = "model.layers.*.mlp"
FAMILY = Family(
    name="mistral4",
    model_types=("mistral4",),
    entries=(
        EMBED,
        *LATENT,
        *NORMS,
        *MLP,
        one("layers.*.moe.router", f"{_AT}.gate.weight"),
        one(stacked(concat(f"{_E}.gate", f"{_E}.up")), f"{_AT}.experts.gate_up_proj"),
        one(stacked(f"{_E}.down"), f"{_AT}.experts.down_proj"),
        *shared(),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
)
