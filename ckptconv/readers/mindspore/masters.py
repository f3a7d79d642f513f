"""Put fp32 masters, saved beside the weights under names of their own, in the place of the weights."""

from __future__ import annotations

from pathlib import Path

from ckptconv.dialects.mindformers.entries import MASTER, beside_weights
from ckptconv.errors import PlanError
from ckptconv.plans.checkpoint import Note
from ckptconv.readers.mindspore.content import Content

__all__ = ["take_masters"]

_LEFT_OUT = "16-bit copies of the weights"


def take_masters(content: Content, where: Path) -> None:
    """Give each master its weight's name; a weight that has none stays.

    Args:
        content: What the files hold, masters read as tensors.
        where: The checkpoint, for errors.

    Raises:
        PlanError: if weights are in lower precision and there are no masters, or one has another shape.
    """
    right = content.graph.right
    masters = {n.removeprefix(MASTER): s for n, s in right.items() if n.startswith(MASTER)}
    weights = {n: s for n, s in right.items() if beside_weights(n) is None}
    lower = [n for n, s in weights.items() if s.dtype in ("float16", "bfloat16")]
    if not masters and lower:
        raise PlanError(
            "this checkpoint holds no fp32 masters",
            where=where,
            hint="leave --weights out; MindFormers saves them as main_param.* in opt-*.safetensors since 2.1",
        )
    if not masters:
        content.notes.append(Note("info", "the model was trained in fp32: its weights are the masters"))
    for name, spec in masters.items():
        if name in weights and weights[name].shape != spec.shape:
            raise PlanError(
                f"{MASTER}{name} is {list(spec.shape)}, the weight {list(weights[name].shape)}",
                where=where,
                hint="check that all files are of one save; --weights model takes the weights",
            )
    if without := [n for n in lower if n not in masters]:
        text = f"{len(without)} tensors have no master ({without[0]}): the weights themselves are taken"
        content.notes.append(Note("warning", text))
    _replace(content, masters.keys() & weights.keys())
    graph = content.graph
    graph.right = {n: masters.get(n, s) for n, s in right.items() if not n.startswith(MASTER)}
    graph.right |= masters


def _replace(content: Content, replaced: set[str]) -> None:
    """Take out what provides the weights that are replaced, and rename what provides the masters."""
    graph = content.graph
    gone = {p.left.tensor for p in graph.pairs if p.right.tensor in replaced}
    content.left_out[_LEFT_OUT] += sum(graph.stored.pop(key).nbytes for key in sorted(gone))
    graph.pairs = [
        p._replace(right=p.right._replace(tensor=p.right.tensor.removeprefix(MASTER)))
        for p in graph.pairs
        if p.right.tensor not in replaced
    ]
