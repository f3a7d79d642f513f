"""Hunyuan, dense and with experts, and HY v3: norms of query and key, whose names are their own."""

from ckptconv.families.base import Config, Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention, gated
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

_AT, _MLP = "model.layers.*.self_attn", "model.layers.*.mlp"
_ATTENTION = (
    *attention("attention_bias", "attention_bias"),
    one("layers.*.attn.q_norm", f"{_AT}.query_layernorm.weight"),
    one("layers.*.attn.k_norm", f"{_AT}.key_layernorm.weight"),
)
_KEYS = {"attention_bias": "qkv_bias o_bias"}
_SPARSE = {"num_experts": "experts", "num_experts_per_tok": "topk?"}
_ASSUMED = {"attention_bias": False, "rms_norm_eps": 1e-5}
_EXPERTS = gated("layers.*.moe.experts.{e}", f"{_MLP}.experts.{{e}}")
_SHARED = gated("layers.*.moe.shared", f"{_MLP}.shared_mlp")


def _normed_late(config: Config) -> list[str]:
    """Say what sets it apart from Qwen 3 (transformers 5.23, ``modeling_hunyuan_v1_dense.py``)."""
    return ["norms of query and key after rotary embedding"]


DENSE = Family(
    name="hunyuan_v1_dense",
    model_types=("hunyuan_v1_dense",),
    entries=(EMBED, *_ATTENTION, *NORMS, *MLP, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    beyond=_normed_late,
    template=decoder(
        "HunYuanDenseV1ForCausalLM", _KEYS, fixed={"qk_norm": True}, assumed=_ASSUMED, by_name=True
    ),
)
MOE = Family(
    name="hunyuan_v1_moe",
    model_types=("hunyuan_v1_moe",),
    entries=(
        EMBED,
        *_ATTENTION,
        *NORMS,
        one("layers.*.moe.router", f"{_MLP}.gate.wg.weight"),
        *_EXPERTS,
        *_SHARED,
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    pinned=(r".*\.mlp\.gate\.wg\.weight",),
    sizes=lambda config: {"shared_inner": config.get("intermediate_size") or 0},
    beyond=_normed_late,
    template=decoder(
        "HunYuanMoEV1ForCausalLM",
        {**_KEYS, "intermediate_size": "expert_inner", **_SPARSE},
        fixed={"qk_norm": True, "norm_topk": True, "score_function": "softmax"},
        assumed=_ASSUMED,
        by_name=True,
    ),
)


def _shared_inner(config: Config) -> dict[str, int]:
    return {
        "shared_inner": (config.get("num_shared_experts") or 0) * (config.get("moe_intermediate_size") or 0)
    }


HY_V3 = Family(
    name="hy_v3",
    model_types=("hy_v3",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *QK_NORMS,
        *NORMS,
        *MLP,
        one("layers.*.moe.router", f"{_MLP}.router.gate.weight"),
        one("layers.*.moe.router_bias", f"{_MLP}.expert_bias"),
        *_EXPERTS,
        *_SHARED,
        *ENDS,
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    pinned=(r".*\.mlp\.expert_bias",),
    sizes=_shared_inner,
    template=decoder(
        "HYV3ForCausalLM",
        {
            **_KEYS,
            **_SPARSE,
            "moe_intermediate_size": "expert_inner",
            "router_scaling_factor": "routed_scaling",
        },
        fixed={"qk_norm": True, "norm_topk": True, "score_function": "sigmoid", "router_bias": True},
        assumed={**_ASSUMED, "router_scaling_factor": 2.826},
        by_name=True,
    ),
)
