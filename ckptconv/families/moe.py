"""Mixture-of-experts relatives: Mixtral, Qwen2-MoE, Qwen3-MoE.

transformers 5 stacks the experts in memory and saves them one by one (5.23, ``conversion_mapping.py``).
"""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention, gated
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

EXPERTS = "model.layers.*.mlp.experts"
ROUTED = (
    one("layers.*.moe.router", "model.layers.*.mlp.gate.weight"),
    *gated("layers.*.moe.experts.{e}", f"{EXPERTS}.{{e}}"),
)
_QWEN = {"tie_word_embeddings": False, "decoder_sparse_step": 1}

_SPARSE = {
    "moe_intermediate_size": "expert_inner",
    "num_experts": "experts",
    "num_experts_per_tok": "topk",
    "norm_topk_prob": "norm_topk",
    "mlp_only_layers": "dense_layers",
    "sliding_window": "window",
    "use_sliding_window": "has_window",
}
_QWEN_ASSUMED = {
    "sliding_window": None,
    "use_sliding_window": False,
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-6,
}
PLAIN_ROUTING = {"score_function": "softmax", "router_bias": False, "routed_scaling": 1.0, "n_group": 1}
QWEN3_MOE = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *QK_NORMS,
        *NORMS,
        *MLP,
        *ROUTED,
        *ENDS,
    ),
    flags=_QWEN,
    ignored=IGNORED,
    template=decoder(
        "Qwen3MoeForCausalLM",
        {"attention_bias": "qkv_bias o_bias", **_SPARSE},
        fixed={"qk_norm": True, **PLAIN_ROUTING},
        literals={"decoder_sparse_step": 1},
        assumed={**_QWEN_ASSUMED, "attention_bias": False},
    ),
)
QWEN2_MOE = Family(
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    entries=(
        EMBED,
        *attention("qkv_bias", False),
        *NORMS,
        *MLP,
        *ROUTED,
        *gated("layers.*.moe.shared", "model.layers.*.mlp.shared_expert"),
        one("layers.*.moe.shared_gate", "model.layers.*.mlp.shared_expert_gate.weight"),
        *ENDS,
    ),
    flags={**_QWEN, "qkv_bias": True},
    ignored=IGNORED,
    template=decoder(
        "Qwen2MoeForCausalLM",
        {"qkv_bias": "qkv_bias", "shared_expert_intermediate_size": "shared_inner", **_SPARSE},
        without=("head_dim",),
        fixed={"shared_gate": True, **PLAIN_ROUTING},
        literals={"decoder_sparse_step": 1},
        assumed={**_QWEN_ASSUMED, "qkv_bias": True},
    ),
)

_MOE = "model.layers.*.block_sparse_moe"
MIXTRAL = Family(
    name="mixtral",
    model_types=("mixtral",),
    entries=(
        EMBED,
        *attention(False, False),
        *NORMS,
        one("layers.*.moe.router", f"{_MOE}.gate.weight"),
        *gated("layers.*.moe.experts.{e}", f"{_MOE}.experts.{{e}}", "w1 w3 w2"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "MixtralForCausalLM",
        {
            "intermediate_size": "expert_inner",
            "num_local_experts": "experts",
            "num_experts_per_tok": "topk",
            "sliding_window": "window",
        },
        fixed={"norm_topk": True, "dense_layers": [], **PLAIN_ROUTING},
        assumed={"sliding_window": None, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    ),
)
