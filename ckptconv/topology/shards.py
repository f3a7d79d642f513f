"""Relate the shards of ranks to whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ckptconv.errors import PlanError
from ckptconv.graph import Box, Pair, Relation, Spec

__all__ = ["Cut", "Shard", "merge_shards"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Say how a tensor is cut over ranks.

    Attributes:
        axis: The axis; None if every rank holds it whole.
        parts: Tensors packed along the axis, each cut over the ranks by itself: 2 for a gate and an up
            projection, whose shards are ``[gate of the rank; up of the rank]`` (core 0.16.1,
            ``megatron/core/transformer/mlp.py``).
    """

    axis: int | None = None
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """Hold one rank's slice: its key, shape and dtype, and its number along the cut."""

    key: str
    spec: Spec
    index: int = 0


def merge_shards(name: str, shards: Sequence[Shard], cut: Cut, count: int) -> Relation:
    """Relate shards (left) to the whole tensor (right); the first of equal slices provides.

    Args:
        name: The whole tensor.
        shards: What the ranks hold.
        cut: How it is cut.
        count: Number of slices.

    Raises:
        PlanError: if a slice is missing, or shapes or dtypes do not fit together.
    """
    firsts: dict[int, Shard] = {}
    for shard in shards:
        first = firsts.setdefault(shard.index, shard)
        if first.spec != shard.spec:
            raise PlanError(
                f"{name} is {_text(first.spec)} in {first.key} and {_text(shard.spec)} in {shard.key}",
                hint="the ranks are of different models or saves; copy the checkpoint again",
            )
    wanted = range(count if cut.axis is not None else 1)
    if missing := [i for i in wanted if i not in firsts]:
        raise PlanError(
            f"{name}: no rank holds slice {missing[0]} of {len(wanted)}; {len(firsts)} others are there",
            hint="copy the missing rank's folder, or correct the parallel sizes",
        )
    base = firsts[0].spec
    left = {shard.key: shard.spec for shard in shards}
    if cut.axis is None or len(wanted) == 1:
        pairs = [
            Pair(Box.whole(s.key, base.shape), Box.whole(name, base.shape), left_copy=s is not firsts[0])
            for s in shards
        ]
        return Relation(left, {name: base}, tuple(pairs))
    at = cut.axis
    sizes = [firsts[i].spec.shape[at] if len(firsts[i].spec.shape) > at else -1 for i in wanted]
    rest = {(s.spec.shape[:at], s.spec.shape[at + 1 :], s.spec.dtype) for s in firsts.values()}
    if len(rest) > 1 or any(n < 0 or n % cut.parts for n in sizes):
        found = ", ".join(f"{_text(firsts[i].spec)} in {firsts[i].key}" for i in wanted)
        raise PlanError(f"{name} cannot be joined along axis {at}: {found}", hint="copy the checkpoint again")
    whole = Spec((*base.shape[:at], sum(sizes), *base.shape[at + 1 :]), base.dtype)
    outer, inner, total = prod(base.shape[:at]), prod(base.shape[at + 1 :]), sum(sizes) // cut.parts
    starts = [sum(sizes[:i]) // cut.parts for i in wanted]
    view = (outer, cut.parts, total, inner)
    pairs = []
    for s in shards:
        size = sizes[s.index] // cut.parts
        if not size:
            continue
        box = Box.of(
            name,
            whole.shape,
            view=view,
            start=(0, 0, starts[s.index], 0),
            size=(outer, cut.parts, size, inner),
        )
        pairs.append(Pair(Box.whole(s.key, s.spec.shape), box, left_copy=s is not firsts[s.index]))
    return Relation(left, {name: whole}, tuple(pairs))


def _text(spec: Spec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"
