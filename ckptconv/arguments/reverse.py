"""Write the training arguments that a model's config.json stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ckptconv.arguments.config import facts_of
from ckptconv.errors import PlanError, UsageError
from ckptconv.families import Config, Family

__all__ = ["ArgumentsDialect", "arguments_from"]

ArgumentsDialect = Literal["megatron", "mindspeed"]
_HINT = "convert to the weights alone with --no-assets, and give the training framework its arguments by hand"


def arguments_from(
    config: Config,
    family: Family,
    *,
    dialect: ArgumentsDialect,
    tp: int = 1,
    pp: int = 1,
    vpp: int | None = None,
    ep: int = 1,
    etp: int | None = None,
    divisible: int = 128,
    padded_vocab: int | None = None,
    dtype: str | None = None,
    seq_length: int | None = None,
    implementation: str = "transformer_engine",
    experts_form: Literal["sequential", "grouped", "legacy_grouped"] = "sequential",
    mtp: int | None = None,
    first_stage: int | None = None,
    last_stage: int | None = None,
    layers_per_stage: Sequence[int] | None = None,
    noop_layers: Sequence[int] = (),
    schedule: str | None = None,
    mla_mm_split: bool = False,
    moe_tp_extend_ep: bool = False,
) -> dict[str, Any]:
    """Return arguments with which the framework loads the model and trains on.

    They hold what Megatron-LM's ``load_args_from_checkpoint`` reads (core_v0.16.1,
    ``training/checkpointing.py``) and what tells a reader the rest, under the names of old and new releases
    where these differ. Dtypes are strings (``params_dtype`` is to be stored as ``torch.bfloat16``).

    Args:
        config: The content of config.json.
        family: Its architecture.
        dialect: Whose arguments.
        tp: Tensor parallel size; likewise ``pp``, ``vpp`` (virtual stages each), ``ep`` and ``etp``.
        pp: Pipeline stages.
        vpp: Virtual stages on each.
        ep: Expert parallel size.
        etp: Tensor parallel size of experts; as ``tp`` if not given.
        divisible: ``make_vocab_size_divisible_by``.
        padded_vocab: Rows of the embedding with padding; the rule of Megatron-LM if not given.
        dtype: Dtype of the weights; the config's if not given.
        seq_length: Length of a training sequence; ``max_position_embeddings`` if not given.
        implementation: ``transformer_engine`` or ``local``.
        experts_form: How experts are stored.
        mtp: Layers for multi-token prediction that are written; the config's number if not given.
        first_stage: Layers of the first stage, if uneven.
        last_stage: Layers of the last stage, if uneven.
        layers_per_stage: Layers of every stage (MindSpeed).
        noop_layers: Positions of empty layers (MindSpeed).
        schedule: Pipeline schedule with an order of its own: ``dualpipev`` (MindSpeed).
        mla_mm_split: Up-projections of latent attention in two (MindSpeed).
        moe_tp_extend_ep: Experts spread over tensor parallel ranks too (MindSpeed).

    Raises:
        PlanError: if the config lacks a value, or the dialect's arguments cannot say what it says.
        UsageError: if MindSpeed's layouts are asked of Megatron.
    """
    special = layers_per_stage or noop_layers or schedule or mla_mm_split or moe_tp_extend_ep
    if dialect == "megatron" and special:
        raise UsageError("this layout exists in MindSpeed-LLM only", hint="write the mindspeed dialect")
    facts = facts_of(config, family)
    v = {name: fact.value for name, fact in facts.items()}
    lacking = [n for n in ("vocab", "hidden", "layers", "heads", "inner") if v.get(n) is None]
    if lacking:
        raise PlanError(f"config.json does not say {', '.join(lacking)}", hint="give a complete --config")
    mindspeed = dialect == "mindspeed"
    kind = dtype or v.get("dtype") or "float32"
    positions = v.get("positions") or seq_length
    stages = pp * (vpp or 1)
    args: dict[str, Any] = {
        "num_layers": v["layers"] + len(noop_layers),
        "encoder_num_layers": v["layers"] + len(noop_layers),
        "hidden_size": v["hidden"],
        "ffn_hidden_size": v["inner"],
        "num_attention_heads": v["heads"],
        "seq_length": seq_length or positions,
        "encoder_seq_length": seq_length or positions,
        "max_position_embeddings": positions,
        "vocab_size": v["vocab"],
        "padded_vocab_size": padded_vocab or -(-v["vocab"] // (divisible * tp)) * divisible * tp,
        "make_vocab_size_divisible_by": divisible,
        "params_dtype": kind,
        "bf16": kind == "bfloat16",
        "fp16": kind == "float16",
        "untie_embeddings_and_output_weights": not v.get("tied", False),
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "transformer_pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": vpp,
        "num_layers_per_virtual_pipeline_stage": None,
        "expert_model_parallel_size": ep,
        "expert_tensor_parallel_size": etp or tp,
        "context_parallel_size": 1,
        "decoder_first_pipeline_num_layers": first_stage,
        "decoder_last_pipeline_num_layers": last_stage,
        "pipeline_model_parallel_layout": None,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
        "sequence_parallel": tp > 1 and bool(v.get("experts")),
        "transformer_impl": implementation,
        "use_legacy_models": False,
        "use_mcore_models": True,
        "mtp_num_layers": (v.get("mtp") if mtp is None else mtp) or None,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        "ckpt_format": "torch",
        "spec": None,
        "iteration": 0,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
    if vpp and not (first_stage or last_stage) and args["num_layers"] % stages == 0:
        args["num_layers_per_virtual_pipeline_stage"] = args["num_layers"] // stages
    args |= _norms(v, mindspeed) | _activation(v, mindspeed) | _attention(v, mindspeed)
    args |= _positions(v, mindspeed)
    args |= _experts(v, mindspeed, experts_form)
    if mindspeed:
        args |= {
            "num_layer_list": ",".join(map(str, layers_per_stage)) if layers_per_stage else None,
            "noop_layers": ",".join(map(str, sorted(noop_layers))) if noop_layers else None,
            "schedules_method": schedule,
            "mla_mm_split": mla_mm_split,
            "moe_tp_extend_ep": moe_tp_extend_ep,
        }
    return args


def _cannot(what: str, value: object = "") -> PlanError:
    return PlanError(f"the framework's arguments have no word for {what} {value}".strip(), hint=_HINT)


def _norms(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    zero = bool(v.get("zero_centered"))
    args = {
        "normalization": v["norm_kind"],
        "norm_epsilon": v["norm_eps"],
        "layernorm_epsilon": v["norm_eps"],
        "apply_layernorm_1p": zero and not mindspeed,
        "layernorm_zero_centered_gamma": zero and not mindspeed,
    }
    scaled = bool(v.get("embed_scaled"))
    if mindspeed:
        own = {name: v.get(name) for name in ("scale_emb", "scale_depth", "dim_model_base")}
        return {
            **args,
            **own,
            "add_rmsnorm_offset": zero,
            "input_embeds_norm": scaled,
            "post_norm": bool(v.get("post_norm")),
            "embed_layernorm": bool(v.get("embed_norm")),
        }
    for name, what in (
        ("embed_scaled", "a scaled embedding"),
        ("multipliers", "multipliers"),
        ("embed_norm", "a norm after the embedding"),
        ("post_norm", "norms after attention and MLP"),
    ):
        if v.get(name):
            raise _cannot(what)
    return args


def _activation(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    activation, gated, bias = v["activation"], v["gated"], bool(v.get("linear_bias"))
    args = {
        "swiglu": False,
        "squared_relu": False,
        "quick_geglu": False,
        "openai_gelu": False,
        "onnx_safe": None,
        "bias_gelu_fusion": False,
        "bias_swiglu_fusion": activation == "silu",
    }
    if mindspeed:
        args |= {"geglu": False, "gelu_tanh": False}
    tanh = activation in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
    if gated and activation == "silu":
        return {**args, "swiglu": True}
    if gated and activation == "quick_gelu":
        return {**args, "quick_geglu": True}
    if gated and mindspeed and (tanh or activation == "gelu"):
        return {**args, "gelu_tanh" if tanh else "geglu": True}
    if not gated and activation == "relu2":
        return {**args, "squared_relu": True}
    if not gated and (activation == "gelu" or (tanh and bias)):
        return {**args, "bias_gelu_fusion": tanh}
    raise _cannot("the activation", f"{activation}{' (gated)' if gated else ''}")


def _attention(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    latent = v.get("kv_rank") is not None
    every = bool(v.get("linear_bias"))
    qkv, out = bool(v.get("qkv_bias")), bool(v.get("o_bias"))
    if (every and not (qkv and out)) or (out and not every and not mindspeed) or (latent and qkv):
        raise _cannot("biases of only some projections", f"(qkv {qkv}, output {out}, MLP {every})")
    args: dict[str, Any] = {
        "add_bias_linear": every,
        "add_qkv_bias": qkv,
        "qk_layernorm": bool(v.get("qk_norm")) or latent,
        "softmax_type": "vanilla",
        "multi_latent_attention": latent,
    }
    if mindspeed:
        args["add_dense_bias"] = out and not every
    if latent:
        args |= {
            "q_lora_rank": v.get("q_rank"),
            "kv_lora_rank": v["kv_rank"],
            "qk_head_dim": v["nope"],
            "qk_pos_emb_head_dim": v["rope"],
            "v_head_dim": v["v_dim"],
            "kv_channels": v["hidden"] // v["heads"],
            "group_query_attention": False,
            "num_query_groups": 1,
        }
    else:
        grouped = v["kv_heads"] != v["heads"]
        args |= {
            "kv_channels": v["head_dim"],
            "group_query_attention": grouped,
            "num_query_groups": v["kv_heads"] if grouped else 1,
        }
    return args | _window(v, mindspeed) | _softcaps(v, mindspeed)


def _window(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    window, skip = v.get("window"), v.get("window_skip")
    if window is None:
        return {
            "window_size": None,
            "window_attn_skip_freq": None,
            **({"sliding_window": None} if mindspeed else {}),
        }
    if isinstance(skip, list):
        raise _cannot("a sliding window on only some layers", skip)
    if not mindspeed:
        return {"window_size": [window - 1, 0], "window_attn_skip_freq": skip}
    if skip not in (None, 2):
        raise _cannot("a sliding window except on every layer number", skip)
    return {"sliding_window" if skip is None else "interleave_sliding_window": window}


def _softcaps(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    names = {
        "attn_softcap": "attn_logit_softcapping",
        "logit_softcap": "output_logit_softcapping",
        "query_pre_attn_scalar": "query_pre_attn_scalar",
    }
    if mindspeed:
        return {own: v.get(name) for name, own in names.items()}
    for name in names:
        if v.get(name) is not None:
            raise _cannot(name, v[name])
    return {}


def _positions(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    kind = v.get("position", "rope")
    rotary = kind == "rope"
    part = v.get("partial_rotary", 1.0)
    if kind == "alibi" and not mindspeed:
        raise _cannot("position embeddings", kind)
    theta = v.get("rope_theta")
    if rotary and theta is None:
        raise PlanError("config.json does not say rope_theta", hint="give a complete --config")
    args: dict[str, Any] = {
        "position_embedding_type": kind,
        "add_position_embedding": kind == "learned_absolute" or rotary,
        "use_rotary_position_embeddings": rotary,
        "rotary_base": int(theta) if theta is not None and float(theta).is_integer() else theta or 10000,
        "rotary_percent": part,
        "rotary_interleaved": bool(v.get("interleaved")) and v.get("kv_rank") is None,
        "rotary_seq_len_interpolation_factor": None,
        "use_rope_scaling": False,
        "rope_scaling_factor": 8.0,
    }
    if v.get("kv_rank") is not None:
        args |= {"rope_type": "rope", "rotary_scaling_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    if mindspeed:
        args |= {"rope_scaling_type": None, "partial_rotary_factor": part if part != 1 else None}
    scaling = v.get("rope_scaling")
    return args if scaling is None else args | _scaling(scaling, v, mindspeed)


def _scaling(scaling: Mapping[str, Any], v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    kind, factor = scaling["rope_type"], scaling.get("factor")
    before = scaling.get("original_max_position_embeddings")
    latent = v.get("kv_rank") is not None
    if kind == "linear" and factor is not None and float(factor).is_integer():
        return {"rotary_seq_len_interpolation_factor": int(factor)}
    fixed = (scaling.get("low_freq_factor"), scaling.get("high_freq_factor"), before)
    if kind == "llama3" and not mindspeed and fixed == (1.0, 4.0, 8192):
        return {"use_rope_scaling": True, "rope_scaling_factor": factor}
    if kind == "llama3" and mindspeed:
        return {
            "rope_scaling_type": kind,
            "rope_scaling_factor": factor,
            "low_freq_factor": fixed[0],
            "high_freq_factor": fixed[1],
            "original_max_position_embeddings": before,
        }
    if kind == "yarn" and latent and not mindspeed:
        return {
            "rope_type": "yarn",
            "rotary_scaling_factor": factor,
            "original_max_position_embeddings": before,
            "beta_fast": scaling.get("beta_fast", 32),
            "beta_slow": scaling.get("beta_slow", 1),
            "mscale": scaling.get("mscale", 1.0),
            "mscale_all_dim": scaling.get("mscale_all_dim", 0.0),
        }
    if kind == "yarn" and not latent and not mindspeed:
        return {
            "position_embedding_type": "yarn",
            "yarn_rotary_scaling_factor": factor,
            "yarn_original_max_position_embeddings": before,
            "yarn_beta_fast": scaling.get("beta_fast", 32),
            "yarn_beta_slow": scaling.get("beta_slow", 1),
        }
    if kind == "yarn" and (latent or (before and v.get("positions") == factor * before)):
        return {
            "rope_scaling_type": kind,
            "rope_scaling_factor": factor,
            "rope_scaling_original_max_position_embeddings": before,
            "beta_fast": scaling.get("beta_fast", 32),
            "beta_slow": scaling.get("beta_slow", 1),
            "rope_scaling_mscale": scaling.get("mscale", 1.0),
            "rope_scaling_mscale_all_dim": scaling.get("mscale_all_dim", 0.0),
        }
    if kind == "longrope" and mindspeed:
        return {
            "rope_scaling_type": kind,
            "short_factor": scaling.get("short_factor"),
            "long_factor": scaling.get("long_factor"),
            "rope_scaling_original_max_position_embeddings": before,
        }
    if kind == "dynamic" and mindspeed:
        return {"dynamic_factor": factor}
    raise _cannot("rope_scaling", dict(scaling))


def _experts(v: Mapping[str, Any], mindspeed: bool, form: str) -> dict[str, Any]:
    if not v.get("experts"):
        return {
            "num_experts": None,
            "moe_ffn_hidden_size": None,
            "moe_layer_freq": 1,
            "moe_grouped_gemm": False,
        }
    sigmoid, norm = v.get("score_function") == "sigmoid", bool(v.get("norm_topk"))
    if sigmoid and not norm:
        raise _cannot("sigmoid scores that are not", "normalised")
    layers: list[bool] = v["moe_layers"]
    args: dict[str, Any] = {
        "num_experts": v["experts"],
        "moe_ffn_hidden_size": v["expert_inner"],
        "moe_layer_freq": [int(s) for s in layers],
        "moe_grouped_gemm": form != "sequential",
        "moe_use_legacy_grouped_gemm": form == "legacy_grouped",
        "moe_router_topk": v["topk"],
        "moe_router_score_function": "sigmoid" if sigmoid else "softmax",
        "moe_router_pre_softmax": not norm,
        "moe_router_enable_expert_bias": bool(v.get("router_bias")),
        "moe_router_topk_scaling_factor": v.get("routed_scaling", 1.0),
        "moe_router_num_groups": v["n_group"] if v.get("n_group", 1) > 1 else None,
        "moe_router_group_topk": v["topk_group"] if v.get("n_group", 1) > 1 else None,
        "moe_router_load_balancing_type": "aux_loss",
        "moe_token_dispatcher_type": "alltoall",
        "moe_shared_expert_intermediate_size": v.get("shared_inner"),
        "moe_shared_expert_gate": bool(v.get("shared_gate")),
    }
    if not mindspeed:
        return args
    first = next((i for i, sparse in enumerate(layers) if sparse), len(layers))
    if not all(layers[first:]):
        raise _cannot("experts in the layers", layers)
    return {
        **args,
        "first_k_dense_replace": first,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
        "shared_expert_gate": bool(v.get("shared_gate")),
    }
