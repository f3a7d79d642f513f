"""DeepSeek-V2 (and Lite, whose query is not compressed), V3 and Kimi K2: latent attention and routed experts.

The rotary part of queries and keys stays in neighbouring pairs, as the models are published; transformers
reorders it while it computes (5.23, ``modeling_deepseek_v3.py``).
"""

from dataclasses import replace

from ckptconv.families.base import Family
from ckptconv.families.llama import BIASED_MLP, EMBED, ENDS, IGNORED, MLP, NORMS, gated
from ckptconv.families.moe import ROUTED
from ckptconv.families.template import decoder
from ckptconv.slots import Entry, grouped, linear, one

_AT = "model.layers.*.self_attn"
LATENT = (
    one(
        grouped("heads", "layers.*.mla.q.nope", "layers.*.mla.q.rope"),
        f"{_AT}.q_proj.weight",
        when="!q_lora_rank",
    ),
    one("layers.*.mla.q_a", f"{_AT}.q_a_proj.weight", when="q_lora_rank"),
    one("layers.*.mla.q_a.bias", f"{_AT}.q_a_proj.bias", when="q_lora_rank attention_bias"),
    one("layers.*.mla.q_a_norm", f"{_AT}.q_a_layernorm.weight", when="q_lora_rank"),
    one(
        grouped("heads", "layers.*.mla.q_b.nope", "layers.*.mla.q_b.rope"),
        f"{_AT}.q_b_proj.weight",
        when="q_lora_rank",
    ),
    *linear("layers.*.mla.kv_a", f"{_AT}.kv_a_proj_with_mqa", bias="attention_bias"),
    one("layers.*.mla.kv_a_norm", f"{_AT}.kv_a_layernorm.weight"),
    one(grouped("heads", "layers.*.mla.kv_b.k", "layers.*.mla.kv_b.v"), f"{_AT}.kv_b_proj.weight"),
    *linear("layers.*.mla.o", f"{_AT}.o_proj", bias="attention_bias"),
)
ROUTER_BIAS = one("layers.*.moe.router_bias", "model.layers.*.mlp.gate.e_score_correction_bias")
# A layer for multi-token prediction is numbered after the others, and repeats embedding and head.
MTP = (
    one("mtp.*.enorm", "model.layers.*.enorm.weight"),
    one("mtp.*.hnorm", "model.layers.*.hnorm.weight"),
    one("mtp.*.eh_proj", "model.layers.*.eh_proj.weight"),
    one("mtp.*.norm", "model.layers.*.shared_head.norm.weight"),
    one("embed", "model.layers.*.embed_tokens.weight", copy=True),
    one("head", "model.layers.*.shared_head.head.weight", copy=True),
)


def shared(bias: str | bool = False, when: str = "n_shared_experts") -> tuple[Entry, ...]:
    """Declare the shared experts, one MLP of their common width, where the config has this key."""
    made = gated("layers.*.moe.shared", "model.layers.*.mlp.shared_experts", bias=bias)
    return tuple(replace(e, when=f"{when} {e.when or ''}".strip()) for e in made)


_KEYS = {
    "attention_bias": "qkv_bias o_bias",
    "q_lora_rank": "q_rank",
    "kv_lora_rank": "kv_rank",
    "qk_nope_head_dim": "nope",
    "qk_rope_head_dim": "rope",
    "v_head_dim": "v_dim",
    "moe_intermediate_size": "expert_inner",
    "n_routed_experts": "experts",
    "n_shared_experts": "shared_count",
    "num_experts_per_tok": "topk",
    "first_k_dense_replace": "first_k_dense",
    "n_group": "n_group",
    "topk_group": "topk_group",
    "routed_scaling_factor": "routed_scaling",
}
V2 = Family(
    name="deepseek_v2",
    model_types=("deepseek_v2",),
    entries=(EMBED, *LATENT, *NORMS, *BIASED_MLP, *ROUTED, *shared("mlp_bias"), *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "DeepseekV2ForCausalLM",
        {**_KEYS, "mlp_bias": "linear_bias", "topk_method": "topk_method"},
        without=("head_dim",),
        fixed={"score_function": "softmax", "router_bias": False, "norm_topk": False, "shared_gate": False},
        literals={"norm_topk_prob": False},
        assumed={"attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-6, "n_group": None},
    ),
)
V3 = Family(
    name="deepseek_v3",
    model_types=("deepseek_v3", "kimi_k2"),
    entries=(EMBED, *LATENT, *NORMS, *MLP, *ROUTED, ROUTER_BIAS, *shared(), *ENDS, *MTP),
    flags={"tie_word_embeddings": False, "first_k_dense_replace": 3},
    ignored=IGNORED,
    template=decoder(
        "DeepseekV3ForCausalLM",
        {**_KEYS, "norm_topk_prob": "norm_topk", "num_nextn_predict_layers": "mtp?"},
        without=("head_dim",),
        fixed={"score_function": "sigmoid", "router_bias": True, "shared_gate": False},
        literals={"rope_interleave": True, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
        assumed={
            "attention_bias": False,
            "norm_topk_prob": True,
            "rms_norm_eps": 1e-6,
            "num_nextn_predict_layers": 0,
        },
    ),
)
