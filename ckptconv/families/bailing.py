"""Ling and Ring 2.0 (bailing_moe_v2, code on the hub): DeepSeek-V3's experts under names of their own."""

from dataclasses import replace

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import ENDS, IGNORED, MLP, NORMS, gated
from ckptconv.families.moe import ROUTED
from ckptconv.families.template import decoder
from ckptconv.slots import concat, linear, one

_AT, _MLP = "model.layers.*.attention", "model.layers.*.mlp"


def _shared_inner(config: Config) -> dict[str, int]:
    return {
        "shared_inner": (config.get("num_shared_experts") or 0) * (config.get("moe_intermediate_size") or 0)
    }


FAMILY = Family(
    name="bailing_moe_v2",
    model_types=("bailing_moe_v2", "bailing_moe"),
    entries=(
        one("embed", "model.word_embeddings.weight"),
        *linear(
            concat("layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v"),
            f"{_AT}.query_key_value",
            bias="use_qkv_bias",
        ),
        *linear("layers.*.attn.o", f"{_AT}.dense", bias="use_bias"),
        one("layers.*.attn.q_norm", f"{_AT}.query_layernorm.weight", when="use_qk_norm"),
        one("layers.*.attn.k_norm", f"{_AT}.key_layernorm.weight", when="use_qk_norm"),
        *NORMS,
        *MLP,
        *ROUTED,
        one("layers.*.moe.router_bias", f"{_MLP}.gate.expert_bias", when="moe_router_enable_expert_bias"),
        *(
            replace(entry, when="num_shared_experts")
            for entry in gated("layers.*.moe.shared", f"{_MLP}.shared_experts")
        ),
        *ENDS,
        one("mtp.*.enorm", "model.layers.*.enorm.weight"),
        one("mtp.*.hnorm", "model.layers.*.hnorm.weight"),
        one("mtp.*.eh_proj", "model.layers.*.eh_proj.weight"),
        one("mtp.*.norm", "model.layers.*.final_layernorm.weight"),
    ),
    flags={"tie_word_embeddings": False, "num_shared_experts": 0},
    ignored=IGNORED,
    pinned=(r".*\.mlp\.gate\.expert_bias",),
    sizes=_shared_inner,
    template=decoder(
        "BailingMoeV2ForCausalLM",
        {
            "use_qkv_bias": "qkv_bias",
            "use_qk_norm": "qk_norm",
            "partial_rotary_factor": "partial_rotary?",
            "moe_intermediate_size": "expert_inner",
            "num_experts": "experts",
            "num_experts_per_tok": "topk",
            "first_k_dense_replace": "first_k_dense",
            "norm_topk_prob": "norm_topk",
            "n_group": "n_group",
            "topk_group": "topk_group",
            "routed_scaling_factor": "routed_scaling",
            "score_function": "score_function",
            "moe_router_enable_expert_bias": "router_bias",
            "num_nextn_predict_layers": "mtp?",
        },
        assumed={"use_qkv_bias": False, "use_qk_norm": False, "rms_norm_eps": 1e-6},
        by_name=True,
    ),
)
