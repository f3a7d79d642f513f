"""Read from training arguments which layers have experts, and how tokens are routed to them."""

from __future__ import annotations

from ckptconv.facts.value import Args, Fact, computed

__all__ = ["read_experts"]


def read_experts(args: Args, layers: Fact | None) -> dict[str, Fact]:
    """Return routing facts of a model that has experts.

    Args:
        args: The arguments.
        layers: How many layers compute.
    """
    found: dict[str, Fact] = {}
    if (topk := args.whole("moe_router_topk", "num_experts_per_tok")) is not None:
        found["topk"] = topk if not args.converted else args.whole("num_experts_per_tok") or topk
    if (score := args.text("moe_router_score_function", "scoring_func")) is not None:
        found["score_function"] = score
    if (early := args.flag("moe_router_pre_softmax")) is not None:
        found["pre_softmax"] = early
    if (norm := _normalised(args, found)) is not None:
        found["norm_topk"] = norm
    if (bias := args.flag("moe_router_enable_expert_bias")) is not None:
        found["router_bias"] = bias
    scaling = args.number(
        "moe_router_topk_scaling_factor", "routed_scaling_factor", "deprecated_routed_scaling_factor"
    )
    groups = args.whole("moe_router_num_groups", "n_group", "deprecated_n_group")
    chosen = args.whole("moe_router_group_topk", "topk_group", "deprecated_topk_group")
    # Megatron's None means: not scaled, one group.
    found["routed_scaling"] = scaling or Fact(1.0, "args.moe_router_topk_scaling_factor")
    found["n_group"] = groups or Fact(1, "args.moe_router_num_groups")
    found["topk_group"] = chosen or Fact(1, "args.moe_router_group_topk")
    gate = args.flag("moe_shared_expert_gate", "shared_expert_gate")
    found["shared_gate"] = gate or Fact(False, "args.moe_shared_expert_gate")
    if layers is not None and (which := _layers(args, layers.value)) is not None:
        found["moe_layers"] = which
    return found


def _normalised(args: Args, known: dict[str, Fact]) -> Fact | None:
    """Whether the weights of a token's experts sum to one.

    Megatron takes the softmax of the chosen logits, which do, unless ``moe_router_pre_softmax``; sigmoid
    scores it always divides by their sum (megatron-core 0.16.1, ``transformer/moe/moe_utils.py``).
    MindSpeed-LLM has ``norm_topk_prob`` for the routings that take the softmax first (c77308a1,
    ``core/transformer/moe/router.py``).
    """
    own, score, early = args.flag("norm_topk_prob"), known.get("score_function"), known.get("pre_softmax")
    if args.converted:
        return own
    routing = args.text("moe_router_load_balancing_type")
    if own is not None and routing is not None and routing.value in ("softmax_topk", "group_limited_greedy"):
        return computed(own.value, own, routing)
    if score is not None and score.value == "sigmoid":
        return computed(True, score)
    if early is None or not early.value:
        return computed(True, early or routing or score) if early or routing else None
    if own is not None and own.value and routing is not None and routing.value == "aux_loss":
        return computed(True, own, routing)
    return computed(False, early)


def _layers(args: Args, layers: int) -> Fact | None:
    """Which layers have experts, as a list of bools."""
    every, empty = args.numbers("moe_layer_freq"), args.numbers("noop_layers")
    if every is not None:
        gone = set(empty.value) if empty is not None and len(every.value) != layers else set()
        left = [bool(v) for i, v in enumerate(every.value) if i not in gone]
        return computed(left, every) if len(left) == layers else None
    if args.text("moe_layer_freq") is not None:  # a Python expression
        return None
    freq = args.whole("moe_layer_freq")
    if freq is not None and freq.value < 1:
        freq = None
    first = args.whole("first_k_dense_replace")
    step, start = freq.value if freq else 1, first.value if first else 0
    origin = [f for f in (first, freq) if f is not None] or [Fact(None, "args.num_experts")]
    return computed([i >= start and i % step == 0 for i in range(layers)], *origin)
