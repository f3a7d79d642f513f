"""Relate the shards of ranks to whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from ckptconv.errors import PlanError
from ckptconv.records import dataclass
from ckptconv.relations import Box, Pair, Relation, Spec

__all__ = ["Cut", "Shard", "merge_shards"]

Sizes = tuple[int, ...]


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


class Shard(NamedTuple):
    """Hold one rank's slice: its key, shape and dtype, and its number along the cut."""

    key: str
    spec: Spec
    at: int = 0


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
        first = firsts.setdefault(shard.at, shard)
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
        whole_box = Box.whole(name, base.shape)
        pairs = [Pair(_named(whole_box, s.key), whole_box, left_copy=s is not firsts[0]) for s in shards]
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
    # One box for the replicas of a slice: there may be one on every data or expert parallel rank.
    boxes = {
        i: (
            Box.whole("", firsts[i].spec.shape),
            _box(
                name,
                whole.shape,
                view,
                (0, 0, starts[i], 0),
                (outer, cut.parts, sizes[i] // cut.parts, inner),
            ),
        )
        for i in wanted
        if sizes[i]
    }
    pairs = [
        Pair(_named(boxes[s.at][0], s.key), boxes[s.at][1], left_copy=s is not firsts[s.at])
        for s in shards
        if s.at in boxes
    ]
    return Relation(left, {name: whole}, tuple(pairs))


def _named(box: Box, tensor: str) -> Box:
    return Box(tensor, box.offset, box.size, box.stride)


def _box(tensor: str, *form: tuple[int, ...]) -> Box:
    return _named(_form(*form), tensor)


@lru_cache(maxsize=1 << 12)
def _form(shape: Sizes, view: Sizes, start: Sizes, size: Sizes) -> Box:
    return Box.of("", shape, view=view, start=start, size=size)


def _text(spec: Spec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"
