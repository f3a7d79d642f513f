"""Read from training arguments what a layer computes: norms, activation, biases, attention."""

from __future__ import annotations

from ckptconv.facts.sizes import is_latent
from ckptconv.facts.value import Args, Fact, computed

__all__ = ["read_layers"]


def read_layers(args: Args) -> dict[str, Fact]:
    """Return norms, activation, biases, tying and attention's particulars."""
    found = {**_norms(args), **_activation(args), **_biases(args), **_attention(args)}
    if (untied := args.flag("untie_embeddings_and_output_weights")) is not None:
        found["tied"] = computed(not untied.value, untied)
    elif (tied := args.flag("tie_word_embeddings")) is not None:
        found["tied"] = tied
    root = args.whole("hidden_size")
    scale = args.number("embedding_multiplier_scale")
    if (norm := args.on("input_embeds_norm")) is not None:
        found["embed_scaled"] = norm
    elif scale is not None and scale.value != 1 and root is not None:
        # Gemma scales the embedding by the root of the hidden size; any other scale is of no known model.
        if abs(scale.value - root.value**0.5) < 0.01 * scale.value:
            found["embed_scaled"] = computed(True, scale)
        else:
            found["multipliers"] = computed(True, scale)
    elif args.has("input_embeds_norm") or args.has("embedding_multiplier_scale"):
        found["embed_scaled"] = Fact(False, "args.input_embeds_norm")
    for name in ("scale_emb", "dim_model_base", "scale_depth", "output_multiplier_scale"):
        if (own := args.number(name)) is not None and own.value != 1:
            found[name] = own
            found["multipliers"] = computed(True, own)
    return found


def _norms(args: Args) -> dict[str, Fact]:
    """Return kind, epsilon and offset.

    ``norm_epsilon`` of older releases is ``layernorm_epsilon`` since core 0.16.
    """
    found: dict[str, Fact] = {}
    eps = args.number("norm_epsilon", "layernorm_epsilon", "rms_norm_eps", "layer_norm_epsilon")
    if eps is not None:
        found["norm_eps"] = eps
    if (kind := args.text("normalization")) is not None:
        found["norm_kind"] = kind
    names = ("apply_layernorm_1p", "layernorm_zero_centered_gamma", "add_rmsnorm_offset")
    zero = args.on(*names) or args.flag(*names)
    if zero is not None:
        found["zero_centered"] = zero
    if (flag := args.flag("embed_layernorm")) is not None:
        found["embed_norm"] = flag
    if (flag := args.flag("post_norm")) is not None:
        found["post_norm"] = flag
    return found


def _activation(args: Args) -> dict[str, Fact]:
    """Return activation and gate.

    Without ``swiglu`` and the like it is gelu: the tanh form in the fused kernel (``bias_gelu_fusion``, which
    ``add_bias_linear=False`` turns off), torch's exact one without (megatron-core 0.16.1,
    ``fusions/fused_bias_gelu.py`` and ``transformer/mlp.py``).
    """
    own = args.text("hidden_act", "hidden_activation", "activation_function")
    swiglu = args.flag("swiglu")
    if args.converted and own is not None:
        return {"activation": own, "gated": swiglu} if swiglu is not None else {"activation": own}
    for name, activation, gated in (
        ("geglu", "gelu", True),
        ("gelu_tanh", "gelu_pytorch_tanh", True),
        ("swiglu", "silu", True),
        ("squared_relu", "relu2", False),
        ("quick_geglu", "quick_gelu", True),
        ("openai_gelu", "gelu_new", False),
        ("onnx_safe", "gelu", False),
    ):
        if (flag := args.on(name)) is not None:
            return {"activation": computed(activation, flag), "gated": computed(gated, flag)}
    if swiglu is None:
        return {}
    ungated = {"gated": computed(False, swiglu)}
    fused, bias = args.flag("bias_gelu_fusion"), args.flag("add_bias_linear")
    if fused is None or args.on("use_te_activation_func"):
        return ungated
    tanh = fused.value and (bias is None or bias.value)
    return {"activation": computed("gelu_new" if tanh else "gelu", fused), **ungated}


def _biases(args: Args) -> dict[str, Fact]:
    every = args.flag("add_bias_linear")
    if (old := args.flag("disable_bias_linear")) is not None:
        every = computed(not old.value, old)
    found: dict[str, Fact] = {}
    if every is not None:
        found["linear_bias"] = every
    own = args.on("add_qkv_bias", "qkv_bias", "attention_bias")
    if own is not None or every is not None:
        known = own or args.flag("add_qkv_bias") or every
        found["qkv_bias"] = every if every and every.value else known  # type: ignore[assignment]
    if args.converted:
        if (out := args.flag("attention_out_bias")) is not None:
            found["o_bias"] = out
    elif every is not None:
        found["o_bias"] = args.on("add_dense_bias") or every
    return found


def _attention(args: Args) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    if (norm := args.flag("qk_layernorm", "use_qk_norm")) is not None and not is_latent(args):
        found["qk_norm"] = norm
    found |= _window(args)
    if (kind := args.text("softmax_type")) is not None:
        found["sinks"] = computed(kind.value == "learnable", kind)
    if (gate := args.flag("attention_output_gate")) is not None:
        found["output_gate"] = gate
    if (clamp := args.number("activation_func_clamp_value")) is not None:
        found["activation_clamp"] = clamp
    if (offset := args.number("glu_linear_offset")) is not None:
        found["gate_offset"] = offset
    if (scale := args.number("softmax_scale")) is not None and not _is_usual(scale, args):
        found["query_pre_attn_scalar"] = computed(scale.value**-2 if scale.value else None, scale)
    for name, given in {
        "attn_softcap": ("attn_logit_softcapping",),
        "logit_softcap": ("output_logit_softcapping", "final_logit_softcapping"),
        "query_pre_attn_scalar": ("query_pre_attn_scalar",),
    }.items():
        if (value := args.number(*given)) is not None:
            found[name] = value
        elif name in found:
            continue
        elif any(args.has(n) for n in given) or args.converted:
            found[name] = Fact(None, f"args.{given[0]}")
    return found


def _is_usual(scale: Fact, args: Args) -> bool:
    """Whether a softmax scale is one over the root of a head's width, which is what it is by itself."""
    width = args.whole("kv_channels", "head_dim")
    return width is not None and width.value > 0 and abs(scale.value - width.value**-0.5) < 1e-6


def _window(args: Args) -> dict[str, Fact]:
    """Return the sliding window: how many positions a token sees, itself among them, as configs count.

    Megatron's ``window_size`` is (left, right), how many it sees on either side of itself.
    """
    off = args.flag("use_sliding_window")
    if off is not None and not off.value:
        return {"window": computed(None, off)}
    if (own := args.whole("sliding_window")) is not None:
        return {"window": own if own.value > 0 else computed(None, own)}
    if (own := args.whole("interleave_sliding_window")) is not None:  # every second layer, as in Gemma 2
        return {"window": own, "window_skip": computed(2, own)}
    if (sides := args.numbers("window_size")) is not None:
        left = sides.value[0]
        found = {"window": computed(left + 1 if left >= 0 else None, sides)}
        skip = args.whole("window_attn_skip_freq")
        if skip is None and (each := args.numbers("window_attn_skip_freq")) is not None:
            # core 0.19, transformer/utils.py (is_layer_window_attention): 1 where there is a window.
            skip = computed([bool(v) for v in each.value], each)
        if skip is not None and left >= 0:
            found["window_skip"] = skip
        return found
    if args.converted or args.has("window_size") or args.has("sliding_window"):
        return {
            "window": Fact(None, "args.window_size" if args.has("window_size") else "args.sliding_window")
        }
    return {}
