"""OLMo 1, whose norms have no weights, OLMo 2 and 3, which have norms after the blocks alone, and OLMoE.

The norms of query and key are over all heads (transformers 5.23, ``modeling_olmo2.py``, ``_olmoe.py``).
"""

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.moe import PLAIN_ROUTING, ROUTED
from ckptconv.families.qwen import QK_NORMS
from ckptconv.families.template import decoder
from ckptconv.slots import one

_ATTENTION = attention("attention_bias", "attention_bias")
POST_NORMS = (
    one("layers.*.attn_post_norm", "model.layers.*.post_attention_layernorm.weight"),
    one("layers.*.mlp_post_norm", "model.layers.*.post_feedforward_layernorm.weight"),
)
_KEYS = {"attention_bias": "qkv_bias o_bias"}
_SPARSE = {
    **_KEYS,
    "intermediate_size": "expert_inner",
    "num_experts": "experts",
    "num_experts_per_tok": "topk",
    "norm_topk_prob": "norm_topk",
}
_ASSUMED = {"attention_bias": False, "rms_norm_eps": 1e-5}


def over_all_heads(config: Config) -> dict[str, int]:
    """Return the sizes of norms that take all heads of query and of key at once."""
    sizes = dims(config)
    if not {"heads", "head_dim"} <= sizes.keys():
        return {}
    return {"q_norm": sizes["heads"] * sizes["head_dim"], "k_norm": sizes["kv_heads"] * sizes["head_dim"]}


OLMO = Family(
    name="olmo",
    model_types=("olmo",),
    entries=(EMBED, *_ATTENTION, *MLP, ENDS[1]),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "OlmoForCausalLM", _KEYS, without=("head_dim", "rms_norm_eps"), assumed=_ASSUMED, by_name=True
    ),
)
OLMO2 = Family(
    name="olmo2",
    model_types=("olmo2", "olmo3"),
    entries=(EMBED, *_ATTENTION, *QK_NORMS, *MLP, *POST_NORMS, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=over_all_heads,
    template=decoder(
        "Olmo2ForCausalLM",
        _KEYS,
        without=("head_dim",),
        fixed={"qk_norm": True, "post_norm": True},
        assumed=_ASSUMED,
        by_name=True,
    ),
)
OLMOE = Family(
    name="olmoe",
    model_types=("olmoe",),
    entries=(EMBED, *_ATTENTION, *QK_NORMS, *NORMS, *ROUTED, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=over_all_heads,
    template=decoder(
        "OlmoeForCausalLM",
        _SPARSE,
        without=("head_dim",),
        fixed={"qk_norm": True, "dense_layers": [], **PLAIN_ROUTING},
        assumed={**_ASSUMED, "norm_topk_prob": False},
        by_name=True,
    ),
)
FLEX = Family(
    name="flex_olmo",
    model_types=("flex_olmo",),
    entries=(EMBED, *_ATTENTION, *QK_NORMS, *ROUTED, *POST_NORMS, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    sizes=over_all_heads,
    template=decoder(
        "FlexOlmoForCausalLM",
        _SPARSE,
        without=("head_dim",),
        fixed={"qk_norm": True, "post_norm": True, "dense_layers": [], **PLAIN_ROUTING},
        assumed={**_ASSUMED, "norm_topk_prob": False},
        by_name=True,
    ),
)
