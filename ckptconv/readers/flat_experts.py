"""Give experts that a trainer keeps in two axes the three that transformers gives them.

MindSpeed-LLM's FSDP2 backend with ``--moe-grouped-gemm`` (c77308a1, ``mindspeed_llm/fsdp2``) holds
``gate_up_proj`` as ``[experts * hidden, 2 * inner]`` and ``down_proj`` as ``[experts * inner, hidden]``, each
expert the transpose of a linear layer's weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.relations import Box, Pair, Relation, Spec

__all__ = ["unflattened"]

_EXPERTS: Final = re.compile(r"(?P<stem>.+\.)experts\.(?P<which>gate_up_proj|down_proj)")
_ROUTERS: Final = ("gate.weight", "router.weight")


def unflattened(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose experts have an axis of their own; the router beside them says how many."""
    if checkpoint.table is not None:
        return checkpoint
    right = checkpoint.relation.right
    stacks = {n: s for n in right if (s := _stack(n, right)) is not None}
    if not stacks:
        return checkpoint
    made = {n: Spec((e, columns, rows), right[n].dtype) for n, (e, rows, columns) in stacks.items()}
    pairs = [
        Pair(Box.of(n, right[n].shape, view=stacks[n], order=(0, 2, 1)), Box.whole(n, made[n].shape))
        if n in stacks
        else Pair(Box.whole(n, s.shape), Box.whole(n, s.shape))
        for n, s in right.items()
    ]
    relation = checkpoint.relation.compose(Relation(dict(right), {**right, **made}, tuple(pairs)))
    text = f"{len(stacks)} tensors hold experts in two axes, each transposed: {next(iter(stacks))}"
    return replace(checkpoint, relation=relation, notes=(*checkpoint.notes, Note("info", text)))


def _stack(name: str, tensors: Mapping[str, Spec]) -> tuple[int, int, int] | None:
    """Return the experts in a tensor of two axes, and rows and columns of each as it lies there."""
    match, shape = _EXPERTS.fullmatch(name), tensors[name].shape
    if match is None or len(shape) != 2:
        return None
    router = next((s for r in _ROUTERS if (s := tensors.get(match["stem"] + r)) is not None), None)
    if router is None or len(router.shape) != 2:
        return None
    experts, hidden = router.shape
    if not experts or shape[0] % experts:
        return None
    rows, columns = shape[0] // experts, shape[1]
    fits = rows == hidden and columns % 2 == 0 if match["which"] == "gate_up_proj" else columns == hidden
    return (experts, rows, columns) if fits else None
