"""Compute what configs state in a form of their own from the neutral facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.facts.value import Fact, Facts, computed

__all__ = ["DERIVED", "known"]

Values = Mapping[str, Any]


def _first_k_dense(v: Values) -> int:
    layers: list[bool] = v["moe_layers"]
    count = next((i for i, sparse in enumerate(layers) if sparse), len(layers))
    if not all(layers[count:]):
        raise PlanError(
            f"layers with experts do not follow one another ({layers}), which this architecture cannot say",
            hint="give the model's config.json with --config",
        )
    return count


def _shared_count(v: Values) -> int:
    if not v["shared_inner"]:
        raise PlanError(
            "there is no shared expert (shared_inner), without which this architecture cannot be",
            hint="give the model's config.json with --config",
        )
    count, rest = divmod(v["shared_inner"], v["expert_inner"])
    if rest:
        raise PlanError(
            f"the shared experts are {v['shared_inner']} wide, not n x {v['expert_inner']} as experts are",
            hint="give the model's config.json with --config",
        )
    return int(count)


def _mixer_types(v: Values) -> list[str]:
    return ["linear_attention" if delta else "full_attention" for delta in v["delta_layers"]]


def _layer_types(v: Values) -> list[str]:
    skip = v["window_skip"]
    full, sliding = "full_attention", "sliding_attention"
    if isinstance(skip, list):
        return [sliding if windowed else full for windowed in skip]
    return [full if skip and (i + 1) % skip == 0 else sliding for i in range(v["layers"])]


def _rotary_layers(v: Values) -> list[int]:
    """Return 1 for a layer with rotary embedding, 0 without (core 0.19, ``transformer_config.py``)."""
    freq, layers = v["no_rope_freq"], v["layers"]
    if isinstance(freq, int) and not isinstance(freq, bool) and freq > 0:
        freq = [int((i + 1) % freq == 0) for i in range(layers)]
    if not isinstance(freq, list) or len(freq) != layers:
        raise PlanError(
            f"no_rope_freq is {freq}, which does not say of {layers} layers which have rotary embedding",
            hint="give the model's config.json with --config",
        )
    return [int(not without) for without in freq]


# Name -> the facts it follows from, and how.
DERIVED: dict[str, tuple[tuple[str, ...], Callable[[Values], Any]]] = {
    "first_k_dense": (("moe_layers",), _first_k_dense),
    "dense_layers": (
        ("moe_layers",),
        lambda v: [i for i, sparse in enumerate(v["moe_layers"]) if not sparse],
    ),
    "shared_count": (("shared_inner", "expert_inner"), _shared_count),
    "has_window": (("window",), lambda v: v["window"] is not None),
    "full_layers": (("window", "layers"), lambda v: v["layers"] if v["window"] is None else 0),
    "layer_types": (("window_skip", "layers"), _layer_types),
    "rotary_layers": (("no_rope_freq", "layers"), _rotary_layers),
    "mixer_types": (("delta_layers",), _mixer_types),
    "gate_and_up": (("inner",), lambda v: 2 * v["inner"]),
    "no_bias": (("linear_bias",), lambda v: not v["linear_bias"]),
    "grouped": (("kv_heads", "heads"), lambda v: v["kv_heads"] != v["heads"]),
    "rope_ratio": (("rope_theta",), lambda v: v["rope_theta"] / 10000),
    "rotary_dim": (("partial_rotary", "head_dim"), lambda v: int(v["partial_rotary"] * v["head_dim"])),
    "topk_method": (("n_group",), lambda v: "group_limited_greedy" if v["n_group"] > 1 else "greedy"),
}


def known(facts: Facts, name: str) -> Fact | None:
    """Return a fact, or what follows from others under that name; None if it is not known.

    Raises:
        PlanError: if the facts cannot be put in the form asked for.
    """
    if name in facts:
        return facts[name]
    if name not in DERIVED:
        return None
    needed, make = DERIVED[name]
    sources = [facts.get(n) for n in needed]
    if any(s is None for s in sources):
        return None
    return computed(make({n: facts[n].value for n in needed}), *sources)
