"""Phi-3.5-MoE: Mixtral's experts, layer norms, and a routing of its own."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, IGNORED, attention, gated
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

_AT = "model.layers.*"
FAMILY = Family(
    name="phimoe",
    model_types=("phimoe",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        *linear("layers.*.attn_norm", f"{_AT}.input_layernorm", bias=True),
        *linear("layers.*.mlp_norm", f"{_AT}.post_attention_layernorm", bias=True),
        one("layers.*.moe.router", f"{_AT}.block_sparse_moe.gate.weight"),
        *gated("layers.*.moe.experts.{e}", f"{_AT}.block_sparse_moe.experts.{{e}}", "w1 w3 w2"),
        *linear("final_norm", "model.norm", bias=True),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
        one("head.bias", "lm_head.bias", when="lm_head_bias"),
    ),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    beyond=lambda config: ["experts chosen by SparseMixer"],
    template=decoder(
        "PhimoeForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias",
            "intermediate_size": "expert_inner",
            "num_local_experts": "experts",
            "num_experts_per_tok": "topk",
            "rms_norm_eps": "norm_eps",
        },
        without=("head_dim",),
        fixed={"norm_kind": "LayerNorm", "dense_layers": []},
        assumed={"attention_bias": False, "rms_norm_eps": 1e-5},
        by_name=True,
    ),
)
