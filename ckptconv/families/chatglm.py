"""ChatGLM 2 and 3, and GLM-4 in its first form (code on the hub)."""

from collections.abc import Mapping

from ckptconv.families.base import Config, Family
from ckptconv.families.phi3 import GATE_UP, QKV
from ckptconv.families.template import decoder
from ckptconv.slots import linear, one

_LAYER = "transformer.encoder.layers.*"


def _sizes(config: Config) -> Mapping[str, int]:
    """Without ``multi_query_attention`` every head has a key and value of its own."""
    groups = config.get("multi_query_group_num") if config.get("multi_query_attention") else None
    said = {
        "vocab": config.get("padded_vocab_size"),
        "head_dim": config.get("kv_channels"),
        "kv_heads": groups,
    }
    return {name: value for name, value in said.items() if isinstance(value, int)}


FAMILY = Family(
    name="chatglm",
    model_types=("chatglm",),
    entries=(
        one("embed", "transformer.embedding.word_embeddings.weight"),
        one("layers.*.attn_norm", f"{_LAYER}.input_layernorm.weight"),
        *linear(QKV, f"{_LAYER}.self_attention.query_key_value", bias="add_qkv_bias"),
        one("layers.*.attn.o", f"{_LAYER}.self_attention.dense.weight"),
        one("layers.*.mlp_norm", f"{_LAYER}.post_attention_layernorm.weight"),
        one(GATE_UP, f"{_LAYER}.mlp.dense_h_to_4h.weight"),
        one("layers.*.mlp.down", f"{_LAYER}.mlp.dense_4h_to_h.weight"),
        one("final_norm", "transformer.encoder.final_layernorm.weight"),
        one("head", "transformer.output_layer.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": False},
    ignored=(r"transformer\.rotary_pos_emb\.inv_freq", r"transformer\.output_layer\.weight"),
    sizes=_sizes,
    template=decoder(
        "ChatGLMForConditionalGeneration",
        {
            "padded_vocab_size": "vocab",
            "num_layers": "layers",
            "multi_query_attention": "grouped",
            "multi_query_group_num": "kv_heads",
            "kv_channels": "head_dim",
            "ffn_hidden_size": "inner",
            "seq_length": "positions",
            "layernorm_epsilon": "norm_eps",
            "add_qkv_bias": "qkv_bias",
            "rope_ratio": "rope_ratio",
        },
        without=(
            "vocab_size",
            "num_hidden_layers",
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "max_position_embeddings",
            "hidden_act",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
        ),
        fixed={"interleaved": True, "activation": "silu", "partial_rotary": 0.5, "rope_scaling": None},
        literals={"rmsnorm": True, "add_bias_linear": False, "post_layer_norm": True, "original_rope": True},
        assumed={"rope_ratio": 1, "add_qkv_bias": False},
        like=("glm",),
    ),
)
