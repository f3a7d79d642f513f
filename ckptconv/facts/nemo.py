"""Turn the ``model_config.yaml`` of NeMo 1 into Megatron's arguments.

Keys: NeMo 1.23, ``collections/nlp/models/language_modeling/megatron_gpt_model.py``
(``build_transformer_config``), ``conf/megatron_gpt_config.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["nemo_arguments"]

# Megatron's argument -> the key, where it is called otherwise.
_RENAMED: Final = {
    "rotary_percent": "rotary_percentage",
    "add_bias_linear": "bias",
    "add_qkv_bias": "qkv_bias",
    "num_experts": "num_moe_experts",
    "rotary_seq_len_interpolation_factor": "seq_len_interpolation_factor",
    "layernorm_zero_centered_gamma": "layernorm_zero_centered_gamma",
    "use_rope_scaling": "scale_positional_embedding",
}
_SAME: Final = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
    *("kv_channels", "max_position_embeddings", "layernorm_epsilon", "rotary_base", "window_size"),
    *("position_embedding_type", "make_vocab_size_divisible_by", "qk_layernorm", "rotary_interleaved"),
    *("moe_router_topk", "moe_ffn_hidden_size", "moe_layer_freq", "moe_router_pre_softmax"),
    *("moe_router_load_balancing_type", "moe_shared_expert_intermediate_size", "attn_logit_softcapping"),
    *("final_logit_softcapping", "query_pre_attn_scalar", "tensor_model_parallel_size"),
    *("pipeline_model_parallel_size", "expert_model_parallel_size"),
)
# What an activation is among Megatron's flags; the fast forms are fusions of the same.
_ACTIVATIONS: Final = {
    "swiglu": "swiglu",
    "geglu": "geglu",
    "squared-relu": "squared_relu",
    "openai-gelu": "openai_gelu",
    "onnx_safe": "onnx_safe",
}
_NORMS: Final = {
    "layernorm": "LayerNorm",
    "low_precision_layernorm": "LayerNorm",
    "layernorm1p": "LayerNorm",
    "rmsnorm": "RMSNorm",
}


def nemo_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says, under the names of Megatron's arguments.

    Args:
        config: The content of ``model_config.yaml``.
    """
    found = {name: config.get(name) for name in _SAME if name in config}
    found |= {name: config[key] for name, key in _RENAMED.items() if key in config}
    found["add_bias_linear"] = bool(config.get("bias", True))
    word = str(config.get("activation", "gelu")).removeprefix("fast-")
    flag = _ACTIVATIONS.get(word)
    found |= {name: name == flag for name in _ACTIVATIONS.values()}
    if flag is None and word != "gelu":
        found["hidden_act"] = word
    found["bias_gelu_fusion"] = bool(config.get("bias_activation_fusion", True)) and found["add_bias_linear"]
    norm = str(config.get("normalization", "layernorm"))
    found["normalization"] = _NORMS.get(norm, norm)
    if norm == "layernorm1p":
        found["apply_layernorm_1p"] = True
    groups = config.get("num_query_groups")
    found["group_query_attention"] = groups is not None
    found["num_query_groups"] = config.get("num_attention_heads") if groups is None else groups
    found["untie_embeddings_and_output_weights"] = not config.get("share_embeddings_and_output_weights", True)
    found.setdefault("max_position_embeddings", config.get("encoder_seq_length"))
    found.setdefault("position_embedding_type", "learned_absolute")
    found.setdefault("rotary_percent", 1.0)
    if found["position_embedding_type"] == "rope":
        found.setdefault("rotary_base", 10000)
    precision = str(config.get("precision", ""))
    found["bf16"] = "bf16" in precision
    found["fp16"] = "16" in precision and not found["bf16"]
    return {k: v for k, v in found.items() if v is not None or k == "window_size"}
