"""Read values that others wrote as what they are to be: whole numbers, numbers, flags, texts, within bounds.

Training arguments, YAML and config.json hold anything: a text for a number, ``inf``, integers of thousands of
digits. What is built from them (lists of layers, shapes, other configs) must not be surprised by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from os import PathLike
from typing import Any, Final

from ckptconv.errors import FormatError

__all__ = ["KINDS", "MOST_LAYERS", "as_flag", "as_number", "as_whole", "bounded", "short", "typed_config"]

MOST_LAYERS: Final = 10_000
"""Layers of a model, at most: lists are made of as many. The deepest known have 200."""

_MOST: Final = 1 << 48
_MOST_NUMBER: Final = 1e300
_MOST_ITEMS: Final = 100_000
_DEPTH: Final = 4
_LANGUAGE: Final = ("text_config", "language_config", "llm_config", "thinker_config")


def as_whole(value: Any) -> int | None:
    """Return a whole number, also one that is written as a float; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_number(value: Any) -> int | float | None:
    """Return a number; None if it is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def bounded(value: int | float, origin: str, where: str | PathLike[str] | None = None) -> int | float:
    """Return a number that a model may have.

    Raises:
        FormatError: if it is infinite, no number, or beyond 2^48 (whole) or 1e300.
    """
    fits = abs(value) <= _MOST if isinstance(value, int) else isfinite(value) and abs(value) <= _MOST_NUMBER
    if not fits:
        raise FormatError(f"{origin} is {short(value)}, which no model has", where=where, hint=_HINT)
    return value


_HINT = "if the file is sound, give the model's config.json with --config"


def short(value: Any) -> str:
    """Write a value as Python does, shortly."""
    if isinstance(value, int) and abs(value) > 10**30:
        return f"a number of about {int(value.bit_length() * 0.30103) + 1:,} digits"
    if isinstance(value, list | tuple | dict | set) and len(value) > 20:
        return f"a {type(value).__name__} of {len(value):,} items"
    text = repr(value) if isinstance(value, str | float | int | bool | None) else _inner(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def _inner(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits in it, or itself
        return f"a {type(value).__name__}"


def _whole(value: Any) -> int | None:
    found = as_whole(value)
    return found if found is not None and abs(found) <= _MOST else None


def _size(value: Any) -> int | None:
    found = _whole(value)
    return found if found is not None and found >= 0 else None


def _number(value: Any) -> int | float | None:
    found = as_number(value)
    if found is None:
        return None
    if isinstance(found, int):
        return found if abs(found) <= _MOST else None
    return found if isfinite(found) and abs(found) <= _MOST_NUMBER else None


def as_flag(value: Any) -> bool | None:
    """Return a flag, also one that is written as 0 or 1; None if it is none."""
    if isinstance(value, bool):
        return value
    return bool(value) if value in (0, 1) and isinstance(value, int) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _many(one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> list[Any] | None:
        if not isinstance(value, list | tuple) or len(value) > _MOST_ITEMS:
            return None
        found = [one(v) for v in value]
        return None if any(v is None for v in found) else found

    return read


def _either(*kinds: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        return next((v for kind in kinds if (v := kind(value)) is not None), None)

    return read


def _rope(value: Any) -> dict[str, Any] | None:
    """Return the parameters of a rotary embedding, or those of each type of layers."""
    if not isinstance(value, Mapping) or len(value) > 100:
        return None
    found = {}
    for key, one in value.items():
        kind = KINDS.get(key, _either(_number, as_flag, _text, _many(_number), _rope))
        found[key] = None if one is None else kind(one)
        if one is not None and found[key] is None:
            return None
    return found


_SAID: dict[Callable[[Any], Any], str] = {
    _size: "no whole number from 0 on",
    _number: "no number a model has",
    as_flag: "neither true nor false",
    _text: "no text",
    _rope: "no rotary embedding",
}
_SIZES = """
    vocab_size padded_vocab_size hidden_size n_embd d_model n_embed num_hidden_layers n_layer num_layers
    num_attention_heads n_head num_key_value_heads head_dim intermediate_size n_inner ffn_hidden_size
    max_position_embeddings n_positions num_local_experts num_experts n_routed_experts moe_intermediate_size
    shared_expert_intermediate_size q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim
    qk_head_dim linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim
    linear_conv_kernel_dim num_nextn_predict_layers mtp_num_hidden_layers num_experts_per_tok
    n_shared_experts first_k_dense_replace decoder_sparse_step n_group topk_group sliding_window
    max_window_layers multi_query_group_num kv_channels seq_length model_max_length multiple_of
    full_attention_interval interleave_moe_layer_step window_size dim_model_base
    original_max_position_embeddings n_heads num_heads attention_heads n_layers num_kv_heads ffn_dim
    max_seq_len intermediate_size_mlp expansion_ratio index_n_heads index_head_dim moe_num_experts moe_k
    num_shared_experts moe_num_shared_experts moe_layer_start_index moe_layer_interval
    shared_intermediate_size index_topk rotary_dim
"""
_NUMBERS = """
    rms_norm_eps layer_norm_epsilon layernorm_epsilon layer_norm_eps norm_eps rope_theta rope_ratio
    rotary_emb_base rotary_pct partial_rotary_factor routed_scaling_factor router_scaling_factor
    scale_emb scale_depth factor
    attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar rope_local_base_freq
    attention_factor beta_fast beta_slow low_freq_factor high_freq_factor mscale mscale_all_dim
    embedding_multiplier residual_multiplier attention_multiplier logits_scaling initializer_range
    norm_epsilon moe_layer_end_index
"""
_FLAGS = """
    attention_bias add_qkv_bias qkv_bias mlp_bias no_bias bias attention_out_bias use_qk_norm qk_norm
    multi_query_attention norm_topk_prob tie_word_embeddings use_sliding_window add_bias_linear use_bias
    attention_output_gate scale_attn_by_inverse_layer_idx apply_residual_connection_post_layernorm
    do_layer_norm_before enable_bias moe_router_enable_expert_bias parallel_attn qk_layernorm use_post_norm
    use_qkv_bias multi_query new_decoder_architecture mamba_conv_bias use_conv_bias use_expert_bias
    gating use_attention_gate use_sandwich_norm
"""
_TEXTS = """
    model_type hidden_act hidden_activation activation_function topk_method scoring_func rope_type activation
    score_function
"""

KINDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(_SIZES.split(), _size),
    **dict.fromkeys(_NUMBERS.split(), _number),
    **dict.fromkeys(_FLAGS.split(), as_flag),
    **dict.fromkeys(_TEXTS.split(), _text),
    **dict.fromkeys(("architectures", "layer_types", "mlp_layer_types"), _many(_text)),
    **dict.fromkeys(("mlp_only_layers", "no_rope_layers", "moe_layers"), _many(_whole)),
    **dict.fromkeys(("short_factor", "long_factor"), _many(_number)),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), _rope),
    "moe_layer_freq": _either(_size, _many(_size)),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _either(_whole, _many(_whole))),
}
"""What a key of a config.json holds, if it is not null: a function that returns it, None if it does not."""


def typed_config(
    config: Mapping[str, Any],
    where: str | PathLike[str] | None,
    *,
    only: tuple[str, ...] = (),
    depth: int = 0,
) -> dict[str, Any]:
    """Return a config whose known keys hold what they are to hold; others stay as they are.

    Args:
        config: The content of a config.json.
        where: The file, for errors.
        only: The keys to look at; all that are known if it is empty.
        depth: How deep in another config it lies.

    Raises:
        FormatError: if a key holds something else, naming key and value.
    """
    found = dict(config)
    for key, value in config.items():
        if isinstance(value, Mapping) and key in _LANGUAGE and depth < _DEPTH and not only:
            found[key] = typed_config(value, where, depth=depth + 1)
        kind = KINDS.get(key)
        if kind is None or value is None or (only and key not in only):
            continue
        found[key] = kind(value)
        if found[key] is None:
            what = _SAID.get(kind, "not what it is in any model")
            raise FormatError(f"{key} is {short(value)}, which is {what}", where=where, hint=_HINT)
    return found
