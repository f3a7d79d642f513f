"""GLM-4.5 and 4.6: grouped attention with the experts and multi-token prediction of DeepSeek-V3."""

from dataclasses import replace

from ckptconv.families.base import Family
from ckptconv.families.deepseek import MTP, ROUTER_BIAS, shared
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.moe import ROUTED
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder

FAMILY = Family(
    name="glm4_moe",
    model_types=("glm4_moe",),
    entries=(
        EMBED,
        *attention("attention_bias", False),
        *(replace(entry, when="use_qk_norm") for entry in QK_NORMS),
        *NORMS,
        *MLP,
        *ROUTED,
        ROUTER_BIAS,
        *shared(),
        *ENDS,
        *MTP,
    ),
    flags={"tie_word_embeddings": False, "first_k_dense_replace": 1},
    ignored=IGNORED,
    template=decoder(
        "Glm4MoeForCausalLM",
        {
            "attention_bias": "qkv_bias",
            "use_qk_norm": "qk_norm",
            "partial_rotary_factor": "partial_rotary",
            "moe_intermediate_size": "expert_inner",
            "n_routed_experts": "experts",
            "n_shared_experts": "shared_count",
            "num_experts_per_tok": "topk",
            "first_k_dense_replace": "first_k_dense",
            "norm_topk_prob": "norm_topk",
            "n_group": "n_group",
            "topk_group": "topk_group",
            "routed_scaling_factor": "routed_scaling",
            "num_nextn_predict_layers": "mtp?",
        },
        fixed={"score_function": "sigmoid", "router_bias": True, "shared_gate": False},
        assumed={
            "attention_bias": False,
            "use_qk_norm": False,
            "partial_rotary_factor": 0.5,
            "norm_topk_prob": True,
            "num_nextn_predict_layers": 0,
        },
    ),
)
