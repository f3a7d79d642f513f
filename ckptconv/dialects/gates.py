"""Tell from shapes which projections have a gate beside them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from ckptconv.relations import Spec

__all__ = ["GATES", "gates"]

GATES: Final = ("mlp.gate", "moe.experts.gate", "moe.shared.gate", "attn.gate")
"""The words that `gates` tells."""

_UP: Final = re.compile(
    r"(?P<stem>.*\.mlp\.(?P<kind>experts\.|shared_experts\.)?(?:.*\.)?)"
    r"(?P<up>linear_fc1|dense_h_to_4h)\.weight(?P<expert>\d*)"
)
_DOWN: Final = {"linear_fc1": "linear_fc2", "dense_h_to_4h": "dense_4h_to_h"}
_WORDS: Final = {"experts.": "moe.experts.gate", "shared_experts.": "moe.shared.gate", None: "mlp.gate"}
_TOGETHER: Final = re.compile(r"(.*\.mlp\.experts\.weight)1")


def gates(tensors: Mapping[str, Spec], names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield a tensor of every layer that has a gate, and what it is of.

    An up projection with a gate has twice the rows that its down projection has columns. Without a down
    projection, which is a fault, it is taken for gated as nearly all are.

    Args:
        tensors: What a part of the model holds.
        names: What all of it holds.
    """
    delta = any(".self_attention.in_proj." in name for name in names)
    for name, spec in tensors.items():
        if (match := _UP.fullmatch(name)) is not None:
            down = tensors.get(f"{match['stem']}{_DOWN[match['up']]}.weight{match['expert']}")
            if down is None or (len(down.shape) == 2 and spec.shape[0] == 2 * down.shape[1]):
                yield name, _WORDS[match["kind"]]
        elif (match := _TOGETHER.fullmatch(name)) is not None:
            down = tensors.get(f"{match[1]}2")
            if down is None or spec.numel == 2 * down.numel:
                yield name, "moe.experts.gate"
        elif name.endswith(".self_attention.q_proj.weight"):  # query and gate alone (MindSpeed-LLM)
            out = tensors.get(name.replace("q_proj", "linear_proj"))
            if out is not None and spec.shape[0] == 2 * out.shape[-1]:
                yield name, "attn.gate"
        elif name.endswith(".self_attention.linear_qkv.weight"):
            out = tensors.get(name.replace("linear_qkv", "linear_proj"))
            if out is not None and _has_output_gate(spec.shape[0], out.shape[-1], delta):
                yield name, "attn.gate"


def _has_output_gate(rows: int, heads: int, delta: bool) -> bool:
    """Whether fused query, key and value hold a gate for each query head.

    Without one they are at most three times as many rows as the heads, and only then more than twice if each
    head has a key and value of its own; with one they are more than twice as many. Three times can be both:
    models with gated delta nets have a gate.

    Args:
        rows: Rows of query, gate, key and value.
        heads: Rows of the query alone.
        delta: Whether the model has gated delta nets.
    """
    return rows > 2 * heads and (rows != 3 * heads or delta)
