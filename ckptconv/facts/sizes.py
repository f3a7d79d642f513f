"""Read a model's sizes from training arguments."""

from __future__ import annotations

from ckptconv.errors import PlanError
from ckptconv.facts.typed import MOST_LAYERS
from ckptconv.facts.value import Args, Fact, computed

__all__ = ["is_latent", "read_sizes"]

# Neutral name -> the arguments that may say it, most reliable first.
_PLAIN: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "n_embed"),
    "heads": ("num_attention_heads", "n_head"),
    "inner": ("ffn_hidden_size", "intermediate_size"),
    "padded_vocab": ("padded_vocab_size",),
}


def is_latent(args: Args) -> Fact | None:
    """Return the flag for multi-head latent attention, if set.

    ``multi_head_latent_attention`` is ModelLink's name for it (d4feda79, ``modellink/arguments.py``).
    """
    flag = args.on(
        "multi_latent_attention", "multi_head_latent_attention", "deprecated_multi_head_latent_attention"
    )
    if flag is None and args.converted and args.whole("qk_nope_head_dim"):
        return args.whole("kv_lora_rank")
    return flag


def read_sizes(args: Args) -> dict[str, Fact]:
    """Return the sizes the arguments fix, under the names of `ckptconv.families.dims`."""
    found = {name: fact for name, names in _PLAIN.items() if (fact := args.whole(*names)) is not None}
    found |= _vocabulary(args)
    found |= _depth(args)
    if (
        fact := args.whole("max_position_embeddings", *(("seq_length",) if args.converted else ()))
    ) is not None:
        found["positions"] = fact
    if is_latent(args):
        found |= _latent(args)
    else:
        found |= _heads(args, found)
    variant = args.text("experimental_attention_variant")
    if variant is not None and variant.value == "gated_delta_net":
        found |= _delta_nets(args, variant, found.get("layers"))
    if (experts := args.whole("num_experts", "n_routed_experts", "num_local_experts")) and experts.value > 0:
        found["experts"] = experts
        found |= _experts(args, found)
    return found


def _vocabulary(args: Args) -> dict[str, Fact]:
    true, padded = args.whole("vocab_size"), args.whole("padded_vocab_size")
    if true is None or (padded is not None and true.value > padded.value):
        return {}
    return {"vocab": true}


def _depth(args: Args) -> dict[str, Fact]:
    """Return the number of layers that compute: ``num_layers`` counts MindSpeed's empty ones as well."""
    layers, empty = args.whole("num_layers", "num_hidden_layers", "n_layer"), args.numbers("noop_layers")
    if layers is None:
        return {}
    if empty is not None and layers.origin == "args.num_layers":
        layers = computed(layers.value - len(set(empty.value)), layers, empty)
    if not 0 <= layers.value <= MOST_LAYERS:
        raise PlanError(f"a model of {layers.value} layers, says {layers.origin}")
    found = {"layers": layers}
    if args.has("mtp_num_layers"):
        found["mtp"] = args.whole("mtp_num_layers") or Fact(0, "args.mtp_num_layers")
    return found


def _heads(args: Args, known: dict[str, Fact]) -> dict[str, Fact]:
    """Return query groups and the size of a head.

    In Megatron ``num_query_groups`` is 1 by default and counts only beside ``group_query_attention``
    (core_v0.16.1, ``megatron/training/arguments.py``). The converter of MindSpeed-LLM sets the latter to
    False whatever the model is, and has ``num_key_value_heads``.
    """
    found: dict[str, Fact] = {}
    heads, hidden = known.get("heads"), known.get("hidden")
    groups = args.whole("num_query_groups")
    grouped = args.flag("group_query_attention")
    if groups is not None:
        on = grouped.value if grouped is not None else groups.value > 1
        if on:
            found["kv_heads"] = groups
        elif heads is not None:
            found["kv_heads"] = computed(heads.value, heads, grouped or groups)
    elif (own := args.whole("num_key_value_heads", "multi_query_group_num")) is not None:
        found["kv_heads"] = own
    elif heads is not None:
        found["kv_heads"] = heads
    size = args.whole("kv_channels", "head_dim")
    if size is None and heads is not None and hidden is not None and heads.value:
        size = computed(hidden.value // heads.value, hidden, heads)
    if size is not None:
        found["head_dim"] = size
    return found


def _latent(args: Args) -> dict[str, Fact]:
    """Return the sizes of latent attention, where ``kv_channels`` and the query groups mean nothing."""
    names = {
        "q_rank": ("q_lora_rank",),
        "kv_rank": ("kv_lora_rank",),
        # A config's qk_head_dim is the sum of both parts, Megatron's is the part without position.
        "nope": ("qk_nope_head_dim", "deprecated_qk_nope_head_dim", "qk_head_dim"),
        "rope": ("qk_rope_head_dim", "deprecated_qk_rope_head_dim", "qk_pos_emb_head_dim"),
        "v_dim": ("v_head_dim",),
        # The indexer of sparse attention (core 0.19; MindSpeed-LLM has a config's names).
        "index_heads": ("dsa_indexer_n_heads", "index_n_heads"),
        "index_dim": ("dsa_indexer_head_dim", "index_head_dim"),
        "index_topk": ("dsa_indexer_topk", "index_topk"),
    }
    found = {name: fact for name, given in names.items() if (fact := args.whole(*given)) is not None}
    if "q_rank" not in found and (args.has("q_lora_rank") or args.converted):
        found["q_rank"] = Fact(None, "args.q_lora_rank")
    if (heads := args.whole("num_attention_heads")) is not None:
        found["kv_heads"] = heads
    pairs = args.flag("dsa_indexer_rope_interleaved")
    if "index_heads" in found and pairs is not None:
        found["index_interleaved"] = pairs
    return found


def _delta_nets(args: Args, variant: Fact, layers: Fact | None) -> dict[str, Fact]:
    """Return the sizes of gated delta nets, and which layers have one.

    ``linear_attention_freq`` N means all layers but each N-th, a list has 1 for a layer with one (core 0.19,
    ``models/gpt/experimental_attention_variant_module_specs.py``).
    """
    names = {
        "delta_keys": "linear_num_key_heads",
        "delta_values": "linear_num_value_heads",
        "delta_key": "linear_key_head_dim",
        "delta_value": "linear_value_head_dim",
        "delta_kernel": "linear_conv_kernel_dim",
    }
    found = {name: fact for name, given in names.items() if (fact := args.whole(given)) is not None}
    every, freq = args.numbers("linear_attention_freq"), args.whole("linear_attention_freq")
    if every is not None:
        found["delta_layers"] = computed([bool(v) for v in every.value], every, variant)
    elif freq is not None and freq.value > 0 and layers is not None:
        which = [(i + 1) % freq.value != 0 for i in range(layers.value)]
        found["delta_layers"] = computed(which, freq, variant)
    return found


def _experts(args: Args, known: dict[str, Fact]) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    inner = args.whole("moe_ffn_hidden_size", "moe_intermediate_size", "deprecated_moe_intermediate_size")
    inner = inner or known.get("inner")
    if inner is not None:
        found["expert_inner"] = inner
    shared = args.whole("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size")
    count = args.whole("n_shared_experts")
    if shared is None and count is not None and inner is not None:
        shared = computed(count.value * inner.value, count, inner)
    if shared is not None and shared.value:
        found["shared_inner"] = shared
    return found
