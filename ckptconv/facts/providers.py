"""Say what classes of Megatron-Bridge and NeMo 2 compute that Megatron's arguments have no word for.

A class (``Gemma3ModelProvider``) or the function that builds a layer (``olmoe_layer_spec``) is an
architecture of transformers; its constants and the fields it reads are here as data. Megatron-Bridge 0.6.2,
``models/*/*_provider.py`` and ``*_bridge.py``; NeMo 2.3, ``collections/llm/gpt/model/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Final

from ckptconv.records import dataclass

__all__ = ["Known", "completed", "known_class"]

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """Describe what is known of a class.

    Attributes:
        model_type: The architecture.
        config: What config.json says that no argument does, from the fields; None where arguments say all.
        arguments: Arguments that the class settles itself, or that mean something else in it.
        when: Whether it is this architecture, of a class that several are made of.
        said: What a user should know of it.
    """

    model_type: str
    config: Callable[[Fields], dict[str, Any]] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    when: Callable[[Fields], bool] | None = None
    said: str | Callable[[Fields], str] = ""


def _window(model: Fields) -> int | None:
    """Return how many positions a token sees, itself among them; a pair is what it sees beside itself."""
    size = model.get("window_size")
    if isinstance(size, list | tuple):
        return int(size[0]) + 1 if size and isinstance(size[0], int) and size[0] >= 0 else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _layers(model: Fields) -> int:
    count = model.get("num_layers")
    return count if isinstance(count, int) and 0 <= count <= 10_000 else 0


def _turns(model: Fields) -> list[str]:
    """Return which layers have a window: so many local ones, then so many global ones, in turns."""
    pattern = model.get("interleaved_attn_pattern") or (5, 1)
    if not isinstance(pattern, list | tuple) or not pattern:
        return []
    if isinstance(pattern[0], str):
        return [str(kind) for kind in pattern]
    near, far = (int(n) for n in pattern[:2])
    return [
        "sliding_attention" if i % max(1, near + far) < near else "full_attention"
        for i in range(_layers(model))
    ]


def _gemma3(model: Fields) -> dict[str, Any]:
    """Gemma3ModelProvider, Gemma3SelfAttention: rotary bases (local, global), the global one scaled."""
    base = model.get("rotary_base")
    near, far = base if isinstance(base, list | tuple) and len(base) == 2 else (10_000.0, 1_000_000.0)
    factor = model.get("rope_scaling_factor") or 1.0
    scale = model.get("softmax_scale") or 256**-0.5
    exact = 1 / float(scale) ** 2
    return {
        "sliding_window": _window(model),
        "layer_types": _turns(model),
        "query_pre_attn_scalar": round(exact) if abs(exact - round(exact)) < 1e-6 * exact else exact,
        "rope_theta": float(far),
        "rope_local_base_freq": float(near),
        "rope_scaling": None if factor == 1 else {"rope_type": "linear", "factor": float(factor)},
    }


def _exaone4(model: Fields) -> dict[str, Any]:
    """Exaone's layer attends to all positions, with rotary embedding in every layer."""
    full = ["full_attention"] * _layers(model)
    return {"sliding_window": None, "layer_types": full, "head_dim": model.get("kv_channels")}


def _minimax_m2(model: Fields) -> dict[str, Any]:
    width, part = model.get("kv_channels"), model.get("rotary_percent")
    if not isinstance(width, int) or not isinstance(part, int | float):
        return {}
    return {"rotary_dim": int(width * part)}


def _ernie_moe(model: Fields) -> dict[str, Any]:
    """Ernie45Bridge: experts from a layer on, the shared ones a multiple of a routed one's width."""
    which = model.get("moe_layer_freq")
    sparse = [bool(v) for v in which] if isinstance(which, list) else [True] * _layers(model)
    inner, shared = model.get("moe_ffn_hidden_size") or 1, model.get("moe_shared_expert_intermediate_size")
    found = [i for i, has in enumerate(sparse) if has]
    return {
        "moe_layer_start_index": found[0] if found else len(sparse),
        "moe_layer_end_index": found[-1] if found else len(sparse) - 1,
        "moe_layer_interval": 1,
        "moe_num_shared_experts": (shared or 0) // inner,
    }


# What a letter of a hybrid model's pattern is (core 0.19, ``models/hybrid/hybrid_layer_allocation.py``).
_KINDS: Final = frozenset("M*-E")


def _pattern(model: Fields) -> str | None:
    """Return a hybrid model's layers without cuts into stages and layers for multi-token prediction."""
    pattern = model.get("hybrid_layer_pattern") or model.get("hybrid_override_pattern")
    return pattern.split("/")[0].replace("|", "") if isinstance(pattern, str) else None


def _is_nemotron_h(model: Fields) -> bool:
    """Whether a hybrid model is one of Mamba layers, attention without positions, and squared relu."""
    pattern, word = _pattern(model) or "", str(model.get("activation_func"))
    plain = not model.get("gated_linear_unit") and model.get("position_embedding_type") == "none"
    return plain and "squared_relu" in word and "M" in pattern and _KINDS.issuperset(pattern)


def _nemotron_h(model: Fields) -> dict[str, Any]:
    """NemotronHBridge; the convolution's width is core's own (0.19, ``ssm/mamba_mixer.py``)."""
    groups = model.get("moe_router_num_groups") or 1
    return {
        "architectures": ["NemotronHForCausalLM"],
        "hybrid_override_pattern": _pattern(model),
        "vocab_size": model.get("vocab_size"),
        "hidden_size": model.get("hidden_size"),
        "intermediate_size": model.get("ffn_hidden_size"),
        "num_attention_heads": model.get("num_attention_heads"),
        "num_key_value_heads": model.get("num_query_groups") or model.get("num_attention_heads"),
        "head_dim": model.get("kv_channels"),
        "max_position_embeddings": model.get("seq_length"),
        "layer_norm_epsilon": model.get("layernorm_epsilon"),
        "tie_word_embeddings": bool(model.get("share_embeddings_and_output_weights")),
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "attention_bias": bool(model.get("add_qkv_bias")),
        "mlp_bias": bool(model.get("add_bias_linear")),
        "use_bias": bool(model.get("add_bias_linear")),
        "use_conv_bias": True,
        "mamba_num_heads": model.get("mamba_num_heads"),
        "mamba_head_dim": model.get("mamba_head_dim"),
        "n_groups": model.get("mamba_num_groups"),
        "ssm_state_size": model.get("mamba_state_dim"),
        "conv_kernel": 4,
        "chunk_size": model.get("mamba_chunk_size") or 128,
        "n_routed_experts": model.get("num_moe_experts") or 0,
        "num_experts_per_tok": model.get("moe_router_topk"),
        "moe_intermediate_size": model.get("moe_ffn_hidden_size"),
        "moe_shared_expert_intermediate_size": model.get("moe_shared_expert_intermediate_size"),
        "n_shared_experts": int(bool(model.get("moe_shared_expert_intermediate_size"))),
        "moe_latent_size": model.get("moe_latent_size"),
        "routed_scaling_factor": model.get("moe_router_topk_scaling_factor") or 1.0,
        "n_group": groups,
        "topk_group": model.get("moe_router_group_topk") or 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": model.get("mtp_num_layers") or 0,
    }


# What the pattern of a hybrid model's layers says, which config.json says in its own way.
_HYBRID: Final = dict.fromkeys(
    (
        *("is_hybrid_model", "use_mamba", "hybrid_attention_ratio", "hybrid_mlp_ratio"),
        *("hybrid_layer_pattern", "hybrid_override_pattern"),
    )
)


def _is_glm5(model: Fields) -> bool:
    """Whether sparse attention is GLM-5's: it alone has a bridge, and DeepSeek-V3.2 rotates halves."""
    if model.get("experimental_attention_variant") != "dsa":
        return False
    return bool(model.get("dsa_indexer_rope_interleaved")) or "glm" in str(model.get("hf_model_id")).lower()


def _glm5(model: Fields) -> dict[str, Any]:
    """GLM5Bridge; vLLM reads ``indexer_rope_interleave``, transformers 5.23 always rotates pairs."""
    found: dict[str, Any] = {"indexer_rope_interleave": bool(model.get("dsa_indexer_rope_interleaved"))}
    freq, offset = model.get("dsa_indexer_topk_freq") or 1, model.get("dsa_indexer_skip_topk_offset") or 0
    if freq != 1:
        found |= {"index_topk_freq": freq, "index_skip_topk_offset": offset}
    return found


def _glm5_said(model: Fields) -> str:
    if model.get("dsa_indexer_rope_interleaved"):
        return ""
    return (
        "its indexer was trained with rotation by halves, which config.json says to vLLM; transformers 5.23 "
        "rotates pairs whatever it says, and looks at other positions"
    )


# Config's key -> the provider's field (falcon_h1/falconh1_provider.py).
_FALCON_H1: Final = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "head_dim": "kv_channels",
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layernorm_epsilon",
    "rope_theta": "rotary_base",
    "tie_word_embeddings": "share_embeddings_and_output_weights",
    "projectors_bias": "add_bias_linear",
    "mlp_bias": "add_bias_linear",
    "mamba_proj_bias": "add_bias_linear",
    "attention_bias": "add_qkv_bias",
    "mamba_n_heads": "mamba_num_heads",
    "mamba_d_head": "mamba_head_dim",
    "mamba_n_groups": "mamba_num_groups",
    "mamba_d_state": "mamba_state_dim",
    "mamba_d_conv": "d_conv",
    "mamba_expand": "expand",
    "mamba_chunk_size": "chunk_size",
    "mamba_conv_bias": "conv_bias",
    "mamba_norm_before_gate": "norm_before_gate",
    "mamba_rms_norm": "rmsnorm",
    **{
        key: key
        for key in (
            *("lm_head_multiplier", "embedding_multiplier", "mlp_multipliers", "key_multiplier"),
            *("attention_out_multiplier", "attention_in_multiplier", "ssm_multipliers"),
            *("ssm_in_multiplier", "ssm_out_multiplier"),
        )
    },
}


def _falcon_h1(model: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {key: model.get(name) for key, name in _FALCON_H1.items()}
    heads, width = model.get("mamba_num_heads") or 0, model.get("mamba_head_dim") or 0
    groups = model.get("num_query_groups") or model.get("num_attention_heads")
    found["architectures"] = ["FalconH1ForCausalLM"]
    return {**found, "num_key_value_heads": groups, "mamba_d_ssm": heads * width, "hidden_act": "silu"}


# Token ids and sizes of a model that sees, as config.json has them outside of its parts.
_OUTSIDE: Final = (
    *("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"),
    *("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id"),
)
# What save_pretrained writes of any config, which says nothing of the model.
_PLAIN: Final = (
    *("architectures", "chunk_size_feed_forward", "dtype", "torch_dtype", "id2label", "label2id"),
    *("is_encoder_decoder", "output_hidden_states", "problem_type", "return_dict", "transformers_version"),
    "_target_",
)


def _config(node: Any) -> dict[str, Any] | None:
    """Return a config of transformers that a provider holds: a node with its class and all fields."""
    if not isinstance(node, Mapping) or "model_type" not in node:
        return None
    return {str(k): v for k, v in node.items() if k not in _PLAIN}


def _sections(model: Fields, sections: Sequence[int]) -> list[int]:
    """Return the sections of rotary embedding; a class' own are those of its published width of a head."""
    width, part = model.get("kv_channels"), model.get("rotary_percent") or 1.0
    half, total = int(width * part) // 2 if isinstance(width, int) else 0, sum(sections)
    fits = half and total and all(n * half % total == 0 for n in sections)
    return [n * half // total for n in sections] if fits else list(sections)


def _seeing(architecture: str, text: str, mrope: tuple[int, ...]) -> Callable[[Fields], dict[str, Any]]:
    """Return what reads a provider that holds the configs of its parts as transformers has them.

    Args:
        architecture: The class in transformers.
        text: The ``model_type`` of its language model.
        mrope: The sections of rotary embedding where no field says them.
    """

    def read(model: Fields) -> dict[str, Any]:
        found: dict[str, Any] = {
            "architectures": [architecture],
            "tie_word_embeddings": bool(model.get("share_embeddings_and_output_weights")),
            **{key: model[key] for key in _OUTSIDE if isinstance(model.get(key), int)},
            "vision_config": _config(model.get("vision_config")),
        }
        if (inside := _config(model.get("hf_text_config"))) is not None:
            return {**found, "text_config": inside}
        rotary = {
            "rope_type": "default",
            "rope_theta": model.get("rotary_base"),
            "mrope_section": _sections(model, model.get("mrope_section") or mrope),
        }
        if model.get("rotary_percent") not in (None, 1, 1.0):
            rotary["partial_rotary_factor"] = model["rotary_percent"]
        return {**found, "text_config": {"model_type": text, "rope_parameters": rotary}}

    return read


_SCALED: Final = {"input_embeds_norm": True}

KNOWN: Final[tuple[tuple[re.Pattern[str], Known], ...]] = tuple(
    (re.compile(pattern), known)
    for pattern, known in (
        (r"(Code)?Gemma(ModelProvider\w*|Config\w*)", Known("gemma", arguments=_SCALED)),
        (r"Gemma2(ModelProvider\w*|Config\w*)", Known("gemma2", arguments=_SCALED)),
        (
            r"Gemma3(ModelProvider\w*|Config\w*)",
            Known(
                "gemma3_text",
                _gemma3,
                {**_SCALED, "window_size": None, "sliding_window": None, "softmax_scale": None},
            ),
        ),
        (
            r"MLAModelProvider|GLM5ModelProvider",
            Known("glm_moe_dsa", _glm5, {"dsa_indexer_rope_interleaved": True}, _is_glm5, _glm5_said),
        ),
        (r"exaone4_layer_spec", Known("exaone4", _exaone4)),
        (r"olmoe_layer_spec", Known("olmoe", arguments={"moe_router_load_balancing_type": None})),
        (r"OlMoEModelProvider", Known("olmoe", arguments={"moe_router_load_balancing_type": None})),
        (r"minimax_m2_layer_spec", Known("minimax_m2", _minimax_m2)),
        (
            r"_ernie45_decoder_block_spec",
            Known(
                "ernie4_5_moe",
                _ernie_moe,
                {"moe_router_score_function": None},
                said="Megatron-Bridge 0.6 routes by sigmoid scores in training, transformers by softmax",
            ),
        ),
        (
            r"(Hybrid|Mamba|NemotronH\w*|NemotronNano\w*)ModelProvider\w*|NemotronH\w*Config\w*",
            Known("nemotron_h", _nemotron_h, {"moe_latent_size": None, **_HYBRID}, _is_nemotron_h),
        ),
        (r"FalconH1ModelProvider", Known("falcon_h1", _falcon_h1, {"embedding_multiplier": None, **_HYBRID})),
        (
            r"Qwen25VLModelProvider",
            Known(
                "qwen2_5_vl", _seeing("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl_text", (16, 24, 24))
            ),
        ),
        (
            r"Qwen3VLModelProvider",
            Known("qwen3_vl", _seeing("Qwen3VLForConditionalGeneration", "qwen3_vl_text", (24, 20, 20))),
        ),
        (
            r"Qwen3VLMoEModelProvider",
            Known(
                "qwen3_vl_moe",
                _seeing("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe_text", (24, 20, 20)),
            ),
        ),
        (
            r"Qwen35VLModelProvider",
            Known("qwen3_5", _seeing("Qwen3_5ForConditionalGeneration", "qwen3_5_text", (11, 11, 10))),
        ),
        (
            r"Qwen35VLMoEModelProvider",
            Known(
                "qwen3_5_moe", _seeing("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text", (11, 11, 10))
            ),
        ),
        (
            r"GLM45VModelProvider",
            Known("glm4v_moe", _seeing("Glm4vMoeForConditionalGeneration", "glm4v_moe_text", (8, 12, 12))),
        ),
    )
)


def known_class(names: Sequence[str], model: Fields) -> Known | None:
    """Return what is known of a class, or the function that builds its layers, by its name.

    Args:
        names: The class, and the function.
        model: The fields of the class.
    """
    found = (k for name in names if name for p, k in KNOWN if p.fullmatch(name))
    return next((k for k in found if k.when is None or k.when(model)), None)


def completed(known: Known, model: Fields, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with what a class computes of itself, and what config.json says beside them.

    Args:
        known: What is known of the class.
        model: Its fields.
        arguments: What they say in Megatron's words.
    """
    found = {**arguments, **known.arguments, "model_type": known.model_type}
    if known.config is not None:
        found["hf_config"] = {**known.config(model), "model_type": known.model_type}
    return found
