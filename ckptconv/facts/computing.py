"""List every training argument that changes what a model computes, with its default.

Most are read as facts of their own elsewhere; the others have no key in any config.json that is built here,
so that a value beside the default is a refusal by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ckptconv.facts.value import Fact
from ckptconv.records import dataclass

__all__ = ["ARGUMENTS", "Argument", "odd_arguments"]


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument that changes the computation.

    Attributes:
        names: What it is called; that of megatron-core first.
        default: Its value where nothing is said; a tuple of several that compute the same.
        facts: The facts it is read as; none if no config.json can say it.
    """

    names: tuple[str, ...]
    default: Any
    facts: tuple[str, ...] = ()


def _read(names: str, default: Any, facts: str) -> Argument:
    return Argument(tuple(names.split()), default, tuple(facts.split()))


def _odd(names: str, default: Any = (None, False)) -> Argument:
    return Argument(tuple(names.split()), default)


# megatron-core 0.19 (transformer/transformer_config.py, training/arguments.py), MindSpeed-LLM c77308a1
# (features_manager/), ModelLink d4feda79 (modellink/arguments.py), MindFormers 1.9 and 2.1
# (transformer_config.py, models/llama/llama_config.py). Sizes are in `facts.sizes`; what changes numerics
# alone (fusions, dtypes, dropout, parallel sizes) is not here.
ARGUMENTS: Final = (
    _read("normalization", "LayerNorm", "norm_kind"),
    _read("norm_epsilon layernorm_epsilon rms_norm_eps layer_norm_epsilon", 1e-5, "norm_eps"),
    _read("apply_layernorm_1p layernorm_zero_centered_gamma add_rmsnorm_offset", False, "zero_centered"),
    _read(
        "swiglu geglu quick_geglu squared_relu openai_gelu gelu_tanh hidden_act", False, "activation gated"
    ),
    _read("activation_func_clamp_value", None, "activation_clamp"),
    _read("glu_linear_offset", 0.0, "gate_offset"),
    _read("add_bias_linear disable_bias_linear", True, "linear_bias qkv_bias o_bias"),
    _read("add_qkv_bias qkv_bias attention_bias qkv_has_bias", False, "qkv_bias"),
    _read("add_dense_bias attention_out_bias attn_proj_has_bias", False, "o_bias"),
    _read("qk_layernorm use_qk_norm", False, "qk_norm"),
    _read("attention_output_gate", False, "output_gate"),
    _read("softmax_type", "vanilla", "sinks"),
    _read("softmax_scale query_pre_attn_scalar", None, "query_pre_attn_scalar"),
    _read("attn_logit_softcapping", None, "attn_softcap"),
    _read("output_logit_softcapping final_logit_softcapping", None, "logit_softcap"),
    _read("window_size sliding_window use_sliding_window", None, "window"),
    _read("window_attn_skip_freq interleave_sliding_window", None, "window_skip"),
    _read("position_embedding_type use_rotary_position_embeddings", "learned_absolute", "position"),
    _read("rotary_base rope_theta theta", 10000, "rope_theta"),
    _read("rotary_percent partial_rotary_factor", 1.0, "partial_rotary"),
    _read("rotary_interleaved use_glm_rope use_partial_rope", False, "interleaved"),
    _read("rotary_seq_len_interpolation_factor dynamic_factor", None, "rope_scaling"),
    _read("use_rope_scaling rope_scaling_factor rope_scaling_type extend_method", False, "rope_scaling"),
    _read("yarn_rotary_scaling_factor yarn_mscale yarn_mscale_all_dim", None, "rope_scaling"),
    _read("rotary_scaling_factor mscale mscale_all_dim beta_fast beta_slow", 1.0, "rope_scaling"),
    _read("untie_embeddings_and_output_weights tie_word_embeddings", False, "tied"),
    _read("embed_layernorm", False, "embed_norm"),
    _read("post_norm", False, "post_norm"),
    _read("input_embeds_norm embedding_multiplier_scale", None, "embed_scaled multipliers"),
    _read("scale_emb scale_depth dim_model_base output_multiplier_scale", None, "multipliers"),
    _read("moe_layer_freq first_k_dense_replace", 1, "moe_layers"),
    _read("moe_router_topk num_experts_per_tok num_experts_chosen", 2, "topk"),
    _read("moe_router_score_function scoring_func", "softmax", "score_function"),
    _read("moe_router_pre_softmax norm_topk_prob", False, "norm_topk"),
    _read("moe_router_topk_scaling_factor routed_scaling_factor", None, "routed_scaling"),
    _read("moe_router_num_groups n_group moe_router_group_topk topk_group", None, "n_group topk_group"),
    _read("moe_router_enable_expert_bias", False, "router_bias"),
    _read("moe_shared_expert_gate shared_expert_gate", False, "shared_gate"),
    _odd("no_rope_freq", (None, 0, False)),
    _odd("qk_l2_norm"),
    _odd("apply_residual_connection_post_layernorm post_layernorm_residual"),
    _odd("sandwich_norm"),
    _odd("no_post_layer_norm"),
    _odd("moe_apply_probs_on_input"),
    _odd("moe_latent_size", (None, 0)),
    _odd("moe_router_force_load_balancing"),
    _odd("moe_router_topk_limited_devices", (None, 0)),
    _odd("moe_n_hash_layers", (None, 0)),
    _odd("is_hybrid_model use_mamba"),
    _odd("hybrid_attention_ratio", (None, 0.0)),
    _odd("hybrid_mlp_ratio", (None, 0.0)),
    _odd("hybrid_override_pattern hybrid_layer_pattern", (None, "")),
    _odd("heterogeneous_layers_config_path heterogeneous_layers_config_encoded_json", (None, "")),
    _odd("enable_hyper_connections"),
    _odd("cla_share_factor", (None, 0, 1)),
    _odd("square_alibi_mask"),
    _odd("fill_neg_inf"),
    _odd("attention_multiplier", (None, 1.0)),
    _odd("residual_multiplier", (None, 1.0)),
    _odd("embedding_multiplier", (None, 1.0)),
    _odd("logits_scaling", (None, 1.0)),
    _odd("rope_local_base_freq", (None,)),
    _odd("parallel_attention use_parallel_residual"),
)


def odd_arguments(args: Mapping[str, Any], said: str = "args") -> dict[str, Fact]:
    """Return the arguments that change the computation in a way that no config.json built here can say.

    Args:
        args: The arguments by name.
        said: What they are called together, for the origin of a fact.
    """
    found = {}
    for argument in ARGUMENTS:
        for name in argument.names if not argument.facts else ():
            if name in args and not _is_default(args[name], argument.default):
                found[argument.names[0]] = Fact(_plain(args[name]), f"{said}.{name}")
    return found


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, list | tuple):  # one for each layer
        return all(_is_default(v, default) for v in value)
    if isinstance(value, str) and value.strip().lower() in ("", "none", "null"):
        return True
    choices = default if isinstance(default, tuple) else (default,)
    return any(value is c if c is None or isinstance(c, bool) else value == c for c in choices)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
