"""BLOOM: layer norms with biases, query, key and value of each head together, a norm after the embedding."""

from ckptconv.families.base import Family
from ckptconv.families.template import Template
from ckptconv.slots import grouped, linear, one

_LAYER = "transformer.h.*"
_QKV = grouped("heads", "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")

FAMILY = Family(
    name="bloom",
    model_types=("bloom",),
    entries=(
        one("embed", "transformer.word_embeddings.weight"),
        *linear("embed_norm", "transformer.word_embeddings_layernorm", bias=True),
        *linear("layers.*.attn_norm", f"{_LAYER}.input_layernorm", bias=True),
        *linear(_QKV, f"{_LAYER}.self_attention.query_key_value", bias=True),
        *linear("layers.*.attn.o", f"{_LAYER}.self_attention.dense", bias=True),
        *linear("layers.*.mlp_norm", f"{_LAYER}.post_attention_layernorm", bias=True),
        *linear("layers.*.mlp.up", f"{_LAYER}.mlp.dense_h_to_4h", bias=True),
        *linear("layers.*.mlp.down", f"{_LAYER}.mlp.dense_4h_to_h", bias=True),
        *linear("final_norm", "transformer.ln_f", bias=True),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True},
    ignored=(r"lm_head\.weight",),
    template=Template(
        "BloomForCausalLM",
        {
            "vocab_size": "vocab",
            "hidden_size": "hidden",
            "n_layer": "layers",
            "n_head": "heads",
            "layer_norm_epsilon": "norm_eps",
            "tie_word_embeddings": "tied",
        },
        {
            "position": "alibi",
            "norm_kind": "LayerNorm",
            "activation": "gelu_new",
            "gated": False,
            "grouped": False,
            "linear_bias": True,
            "qkv_bias": True,
            "o_bias": True,
            "qk_norm": False,
            "embed_norm": True,
            "window": None,
        },
        assumed={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        carried=True,
    ),
)
