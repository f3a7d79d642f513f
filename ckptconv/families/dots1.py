"""dots.llm1 and Solar Open: grouped attention with the experts of DeepSeek-V3."""

from ckptconv.families.base import Family
from ckptconv.families.deepseek import ROUTER_BIAS, shared
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.moe import ROUTED
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder

_ATTENTION = attention("attention_bias", "attention_bias")
_SPARSE = (*ROUTED, ROUTER_BIAS, *shared())
_KEYS = {
    "attention_bias": "qkv_bias o_bias",
    "moe_intermediate_size": "expert_inner",
    "n_routed_experts": "experts",
    "num_experts_per_tok": "topk",
    "n_group": "n_group",
    "topk_group": "topk_group",
    "routed_scaling_factor": "routed_scaling",
    "norm_topk_prob": "norm_topk?",
}
_FIXED = {"score_function": "sigmoid", "router_bias": True, "shared_gate": False}
_ASSUMED = {"attention_bias": False, "rms_norm_eps": 1e-6}
DOTS = Family(
    name="dots1",
    model_types=("dots1",),
    entries=(EMBED, *_ATTENTION, *QK_NORMS, *NORMS, *MLP, *_SPARSE, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "Dots1ForCausalLM",
        {**_KEYS, "first_k_dense_replace": "first_k_dense"},
        without=("head_dim",),
        fixed={"qk_norm": True, **_FIXED},
        assumed={**_ASSUMED, "norm_topk_prob": False},
        by_name=True,
    ),
)
SOLAR = Family(
    name="solar_open",
    model_types=("solar_open",),
    entries=(EMBED, *_ATTENTION, *NORMS, *_SPARSE, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "SolarOpenForCausalLM",
        _KEYS,
        without=("intermediate_size",),
        fixed=_FIXED,
        assumed={**_ASSUMED, "norm_topk_prob": True},
        by_name=True,
    ),
)
