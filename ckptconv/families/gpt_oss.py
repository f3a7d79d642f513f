"""gpt-oss: a sink for each head, biases everywhere, experts together with their rows gate, up, gate, up.

transformers 5.12, ``modeling_gpt_oss.py``; megatron-core 0.19, ``transformer/moe/experts.py``.
"""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, NORMS, attention
from ckptconv.families.moe import PLAIN_ROUTING
from ckptconv.families.template import decoder
from ckptconv.slots import interleaved, linear, one, stacked, transposed

_AT = "model.layers.*"
_E = "layers.*.moe.experts.{e}"
_X = f"{_AT}.mlp.experts"
FAMILY = Family(
    name="gpt_oss",
    model_types=("gpt_oss",),
    entries=(
        EMBED,
        *attention("attention_bias", "attention_bias"),
        one("layers.*.attn.sinks", f"{_AT}.self_attn.sinks"),
        *NORMS,
        *linear("layers.*.moe.router", f"{_AT}.mlp.router", bias=True),
        one(stacked(transposed(interleaved(f"{_E}.gate", f"{_E}.up"))), f"{_X}.gate_up_proj"),
        one(stacked(interleaved(f"{_E}.gate.bias", f"{_E}.up.bias")), f"{_X}.gate_up_proj_bias"),
        one(stacked(transposed(f"{_E}.down")), f"{_X}.down_proj"),
        one(stacked(f"{_E}.down.bias"), f"{_X}.down_proj_bias"),
        *ENDS,
    ),
    flags={"tie_word_embeddings": False, "attention_bias": True, "head_dim": 64},
    ignored=IGNORED,
    template=decoder(
        "GptOssForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias linear_bias",
            "intermediate_size": "expert_inner",
            "num_local_experts": "experts",
            "num_experts_per_tok": "topk",
            "sliding_window": "window",
            "layer_types": "layer_types?",
        },
        without=("hidden_act",),
        fixed={
            "activation": "quick_gelu",
            "activation_clamp": 7.0,
            "gate_offset": 1.0,
            "sinks": True,
            "router_linear_bias": True,
            "window_skip": 2,
            "norm_topk": True,
            "dense_layers": [],
            **PLAIN_ROUTING,
        },
        assumed={"attention_bias": True, "sliding_window": 128, "rms_norm_eps": 1e-5, "rope_theta": 150000.0},
    ),
)
