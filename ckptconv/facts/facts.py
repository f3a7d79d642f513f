"""Read what is known of a model from the arguments it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.facts.computing import odd_arguments
from ckptconv.facts.experts import read_experts
from ckptconv.facts.layers import read_layers
from ckptconv.facts.layout import read_layout
from ckptconv.facts.rope import read_positions
from ckptconv.facts.sizes import read_sizes
from ckptconv.facts.value import Args, Fact, computed

__all__ = ["read_facts"]


def read_facts(args: Mapping[str, Any]) -> dict[str, Fact]:
    """Return the facts under neutral names, each with the argument it came from.

    Two dialects are read: the Namespace of a training run (Megatron-LM, ModelLink, MindSpeed-LLM), and that
    of MindSpeed-LLM's weight converter, which holds the scalars of a config.json. A fact the arguments do not
    settle is not there. ``hf_config`` is what our own arguments hold beside those of the framework: fields of
    a config.json that these have no word for.

    Args:
        args: The arguments by name; dtypes may be strings or inert globals, other objects count as absent.
    """
    read = Args(args)
    sizes = read_sizes(read)
    found = {**sizes, **read_positions(read), **read_layers(read), **read_layout(read), **odd_arguments(args)}
    if "experts" in sizes:
        found |= read_experts(read, sizes.get("layers"))
    if (own := read.record("hf_config")) is not None:
        found["hf_config"] = own
        if isinstance(kind := own.value.get("model_type"), str):
            found["model_type"] = computed(kind, own)
    return found
