"""Exaone 4, which has norms after the blocks alone and full attention without positions, and Exaone MoE."""

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention, gated
from ckptconv.families.moe import ROUTED
from ckptconv.families.olmo import POST_NORMS
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

EXAONE4 = Family(
    name="exaone4",
    model_types=("exaone4",),
    entries=(EMBED, *attention(False, False), *QK_NORMS, *MLP, *POST_NORMS, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "Exaone4ForCausalLM",
        without=("head_dim",),
        fixed={"qk_norm": True, "post_norm": True},
        assumed={"rms_norm_eps": 1e-5},
        by_name=True,
    ),
)


def _shared_inner(config: Config) -> dict[str, int]:
    return {
        "shared_inner": (config.get("num_shared_experts") or 0) * (config.get("moe_intermediate_size") or 0)
    }


MOE = Family(
    name="exaone_moe",
    model_types=("exaone_moe",),
    entries=(
        EMBED,
        *attention(False, False),
        *QK_NORMS,
        *NORMS,
        *MLP,
        *ROUTED,
        one("layers.*.moe.router_bias", "model.layers.*.mlp.e_score_correction_bias"),
        *gated("layers.*.moe.shared", "model.layers.*.mlp.shared_experts"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False, "first_k_dense_replace": 1},
    ignored=IGNORED,
    sizes=_shared_inner,
    template=decoder(
        "ExaoneMoeForCausalLM",
        {
            "moe_intermediate_size": "expert_inner",
            "num_experts": "experts",
            "num_experts_per_tok": "topk",
            "n_group": "n_group",
            "topk_group": "topk_group",
            "routed_scaling_factor": "routed_scaling",
        },
        without=("head_dim",),
        fixed={"qk_norm": True, "norm_topk": True, "score_function": "sigmoid", "router_bias": True},
        assumed={"rms_norm_eps": 1e-5},
        by_name=True,
    ),
)
