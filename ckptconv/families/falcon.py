"""Falcon: query, key and value by group; attention and MLP side by side, or one after the other.

Before Falcon 40B all heads share one key and value, or each has its own (transformers 5.23,
``modeling_falcon.py``).
"""

from dataclasses import replace

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.template import decoder
from ckptconv.slots import Entry, grouped, linear, one

_AT = "transformer.h.*"
QKV = grouped("kv_heads", "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")


def _sizes(config: Config) -> dict[str, int]:
    sizes = dims(config)
    heads, inner = sizes.get("heads", 0), config.get("ffn_hidden_size") or 4 * sizes.get("hidden", 0)
    if config.get("new_decoder_architecture"):
        return {"inner": inner, "kv_heads": config.get("num_kv_heads") or heads}
    return {"inner": inner, "kv_heads": 1 if config.get("multi_query", True) else heads}


def _norm(slot: str, name: str, when: str) -> tuple[Entry, ...]:
    return tuple(replace(e, when=when) for e in linear(slot, f"{_AT}.{name}", bias=True))


FAMILY = Family(
    name="falcon",
    model_types=("falcon",),
    entries=(
        one("embed", "transformer.word_embeddings.weight"),
        *_norm("layers.*.attn_norm", "ln_attn", "new_decoder_architecture"),
        *_norm("layers.*.mlp_norm", "ln_mlp", "new_decoder_architecture"),
        *_norm("layers.*.attn_norm", "input_layernorm", "!new_decoder_architecture"),
        *_norm("layers.*.mlp_norm", "post_attention_layernorm", "!new_decoder_architecture !parallel_attn"),
        *linear(QKV, f"{_AT}.self_attention.query_key_value", bias="bias"),
        *linear("layers.*.attn.o", f"{_AT}.self_attention.dense", bias="bias"),
        *linear("layers.*.mlp.up", f"{_AT}.mlp.dense_h_to_4h", bias="bias"),
        *linear("layers.*.mlp.down", f"{_AT}.mlp.dense_4h_to_h", bias="bias"),
        *linear("final_norm", "transformer.ln_f", bias=True),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True, "parallel_attn": True},
    ignored=(r"lm_head\.weight",),
    sizes=_sizes,
    template=decoder(
        "FalconForCausalLM",
        {"bias": "linear_bias qkv_bias o_bias", "layer_norm_epsilon": "norm_eps", "activation": "activation"},
        without=("rms_norm_eps", "head_dim", "num_key_value_heads", "intermediate_size", "hidden_act"),
        fixed={"norm_kind": "LayerNorm", "gated": False},
        assumed={
            "bias": False,
            "layer_norm_epsilon": 1e-5,
            "activation": "gelu",
            "tie_word_embeddings": True,
        },
        by_name=True,
    ),
)
