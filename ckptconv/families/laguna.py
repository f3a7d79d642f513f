"""Laguna: norms of query and key, a gate for each head, a shared expert (transformers 5.23)."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention, gated
from ckptconv.families.moe import ROUTED
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

_AT = "model.layers.*"
FAMILY = Family(
    name="laguna",
    model_types=("laguna",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        one("layers.*.attn.head_gate", f"{_AT}.self_attn.g_proj.weight", when="gating"),
        *QK_NORMS,
        *NORMS,
        *MLP,
        *ROUTED,
        one("layers.*.moe.router_bias", f"{_AT}.mlp.experts.e_score_correction_bias"),
        *gated("layers.*.moe.shared", f"{_AT}.mlp.shared_expert"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False, "gating": True},
    ignored=IGNORED,
    slots={"layers.*.attn.head_gate": "heads,hidden"},
    template=decoder("LagunaForCausalLM", assumed={"rms_norm_eps": 1e-6}, by_name=True),
)
