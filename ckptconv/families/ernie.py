"""Ernie 4.5, dense and with experts; rotary dimensions are neighbouring pairs.

The routing bias has a leading axis of one (transformers 5.23, ``modeling_ernie4_5_moe.py``).
"""

from dataclasses import replace

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention, gated
from ckptconv.families.moe import ROUTED
from ckptconv.families.template import decoder
from ckptconv.slots import one, stacked

_ATTENTION = attention("use_bias", "use_bias")
_MLP = gated("layers.*.mlp", "model.layers.*.mlp", bias="use_bias")
_KEYS = {"use_bias": "linear_bias qkv_bias o_bias"}
_ASSUMED = {"use_bias": False, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 500000.0}
DENSE = Family(
    name="ernie4_5",
    model_types=("ernie4_5",),
    entries=(EMBED, *_ATTENTION, *NORMS, *_MLP, *ENDS),
    flags={"tie_word_embeddings": True, "head_dim": 128},
    ignored=IGNORED,
    template=decoder(
        "Ernie4_5ForCausalLM", _KEYS, fixed={"interleaved": True}, assumed=_ASSUMED, carried=True
    ),
)


def _kinds(config: Config) -> list[str]:
    first, step = config.get("moe_layer_start_index") or 0, config.get("moe_layer_interval") or 1
    layers = dims(config).get("layers", 0)
    last = config.get("moe_layer_end_index", -1)
    last = layers - 1 if last in (None, -1) else last
    sparse = [first <= i <= last and (i + 1) % step == 0 for i in range(layers)]
    return [f"attn {'moe' if experts else 'mlp'}" for experts in sparse]


def _sizes(config: Config) -> dict[str, int]:
    shared = (config.get("moe_num_shared_experts") or 0) * (config.get("moe_intermediate_size") or 0)
    return {"shared_inner": shared} if shared else {}


MOE = Family(
    name="ernie4_5_moe",
    model_types=("ernie4_5_moe",),
    entries=(
        EMBED,
        *_ATTENTION,
        *NORMS,
        *_MLP,
        *ROUTED,
        one(stacked("layers.*.moe.router_bias"), "model.layers.*.mlp.moe_statics.e_score_correction_bias"),
        *(
            replace(entry, when="moe_num_shared_experts")
            for entry in gated("layers.*.moe.shared", "model.layers.*.mlp.shared_experts")
        ),
        *ENDS,
    ),
    flags={"tie_word_embeddings": True},
    ignored=IGNORED,
    pinned=(r".*\.mlp\.gate\.weight",),
    sizes=_sizes,
    kinds=_kinds,
    template=decoder(
        "Ernie4_5_MoeForCausalLM",
        {
            **_KEYS,
            "moe_intermediate_size": "expert_inner",
            "moe_num_experts": "experts",
            "moe_k": "topk",
        },
        without=("head_dim",),
        fixed={"interleaved": True, "norm_topk": True, "score_function": "softmax", "router_bias": True},
        assumed=_ASSUMED,
        by_name=True,
    ),
)
