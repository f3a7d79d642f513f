"""Write what layers compute as training arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.facts.wordless import cannot

__all__ = ["write_activation", "write_attention", "write_delta_nets", "write_experts", "write_norms"]


def write_norms(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    """Return the arguments of norms and embedding."""
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
            raise cannot(what)
    return args


def write_activation(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    """Return the arguments of the MLP."""
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
        clamp, offset = v.get("activation_clamp"), v.get("gate_offset") or 0.0
        if mindspeed and (clamp or offset):
            raise cannot("a clamped activation, or an offset of its gate", f"({clamp}, {offset})")
        own = {} if mindspeed else {"activation_func_clamp_value": clamp, "glu_linear_offset": offset}
        return {**args, **own, "quick_geglu": True}
    if gated and mindspeed and (tanh or activation == "gelu"):
        return {**args, "gelu_tanh" if tanh else "geglu": True}
    if not gated and activation == "relu2":
        return {**args, "squared_relu": True}
    if not gated and (activation == "gelu" or (tanh and bias)):
        return {**args, "bias_gelu_fusion": tanh}
    raise cannot("the activation", f"{activation}{' (gated)' if gated else ''}")


def write_attention(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    """Return the arguments of attention and of biases."""
    latent = v.get("kv_rank") is not None
    every = bool(v.get("linear_bias"))
    qkv, out = bool(v.get("qkv_bias")), bool(v.get("o_bias"))
    if (every and not (qkv and out)) or (out and not every and not mindspeed) or (latent and qkv):
        raise cannot("biases of only some projections", f"(qkv {qkv}, output {out}, MLP {every})")
    args: dict[str, Any] = {
        "add_bias_linear": every,
        "add_qkv_bias": qkv,
        "qk_layernorm": bool(v.get("qk_norm")) or latent,
        "softmax_type": "learnable" if v.get("sinks") else "vanilla",
        "multi_latent_attention": latent,
    }
    if v.get("output_gate"):
        args["attention_output_gate"] = True
    if mindspeed and (v.get("sinks") or v.get("output_gate")):
        raise cannot("sinks, or a gate of attention's output")
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
            **_indexer(v, mindspeed),
        }
    else:
        grouped = v["kv_heads"] != v["heads"]
        args |= {
            "kv_channels": v["head_dim"],
            "group_query_attention": grouped,
            "num_query_groups": v["kv_heads"] if grouped else 1,
        }
    return args | _window(v, mindspeed) | _softcaps(v, mindspeed)


def _indexer(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    """Return the arguments of sparse attention over latents (core 0.19, ``transformer_config.py``)."""
    if v.get("index_heads") is None:
        return {}
    names = ("index_n_heads", "index_head_dim", "index_topk")
    values = (v["index_heads"], v["index_dim"], v["index_topk"])
    if mindspeed:
        return {"enable_dsa_indexer": True, **dict(zip(names, values, strict=True))}
    own = ("dsa_indexer_n_heads", "dsa_indexer_head_dim", "dsa_indexer_topk")
    return {
        "experimental_attention_variant": "dsa",
        **dict(zip(own, values, strict=True)),
        "dsa_indexer_rope_interleaved": bool(v.get("index_interleaved")),
    }


def write_delta_nets(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    """Return the arguments of gated delta nets (core 0.19, ``transformer/transformer_config.py``)."""
    layers: list[bool] | None = v.get("delta_layers")
    if layers is None:
        return {}
    if mindspeed:
        raise cannot("gated delta nets")
    return {
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": [int(delta) for delta in layers],
        "linear_num_key_heads": v["delta_keys"],
        "linear_num_value_heads": v["delta_values"],
        "linear_key_head_dim": v["delta_key"],
        "linear_value_head_dim": v["delta_value"],
        "linear_conv_kernel_dim": v["delta_kernel"],
    }


def _window(v: Mapping[str, Any], mindspeed: bool) -> dict[str, Any]:
    window, skip = v.get("window"), v.get("window_skip")
    if window is None:
        return {
            "window_size": None,
            "window_attn_skip_freq": None,
            **({"sliding_window": None} if mindspeed else {}),
        }
    if isinstance(skip, list):
        raise cannot("a sliding window on only some layers", skip)
    if not mindspeed:
        return {"window_size": [window - 1, 0], "window_attn_skip_freq": skip}
    if skip not in (None, 2):
        raise cannot("a sliding window except on every layer number", skip)
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
            raise cannot(name, v[name])
    return {}


def write_experts(v: Mapping[str, Any], mindspeed: bool, form: str) -> dict[str, Any]:
    """Return the arguments of experts and routing."""
    if not v.get("experts"):
        return {
            "num_experts": None,
            "moe_ffn_hidden_size": None,
            "moe_layer_freq": 1,
            "moe_grouped_gemm": False,
        }
    sigmoid, norm = v.get("score_function") == "sigmoid", bool(v.get("norm_topk"))
    if sigmoid and not norm:
        raise cannot("sigmoid scores that are not", "normalised")
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
        raise cannot("experts in the layers", layers)
    return {
        **args,
        "first_k_dense_replace": first,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
        "shared_expert_gate": bool(v.get("shared_gate")),
    }
