"""Decide how much of the copies of a tensor is compared with what is written: ``--replicas``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

from ckptconv.dtypes import dtype as dtype_named
from ckptconv.plans.plan import Plan, Step
from ckptconv.relations import Box, Drop, Pair, Relation, Spec, restrict

__all__ = ["with_replicas"]

Choice = Literal["all", "sample", "first"]
_NOT, _SAMPLED = "replica, not compared", "replica, compared by a sample"
_FORMS = 4096  # kept of what replicas are cut into
_TILE = 64 * 1024  # bytes; the first, the middle and the last of each replica


def with_replicas(plan: Plan, choice: Choice | None) -> Plan:
    """Compare all copies, a sample of each, or none; say so in the plan's steps.

    Args:
        plan: A plan that compares all.
        choice: What was asked for; None compares all unless the copies outweigh the output.
    """
    relation = plan.relation
    copies = [p for p in relation.pairs if p.left_copy and p.left.numel]
    if not copies or choice == "all":
        return plan
    weight = sum(p.left.numel * _itemsize(relation.left, p.left.tensor) for p in copies)
    output = sum(s.numel * dtype_named(s.dtype).itemsize for s in relation.right.values())
    if choice is None and weight <= output:
        return plan
    chosen = choice or "sample"
    # What goes to several places of the output needs comparing with one of them.
    once = [p for p in copies if not p.right_copy]
    kept, drops = _sampled(relation, once) if chosen == "sample" else ([], [Drop(p.left, _NOT) for p in once])
    if not drops:
        return plan
    pairs = (*(p for p in relation.pairs if not (p.left_copy and p.left.numel)), *kept)
    made = replace(relation, pairs=pairs, left_only=(*relation.left_only, *drops))
    used = {p.left.tensor for p in pairs}
    dropped = sum(d.box.numel * _itemsize(relation.left, d.box.tensor) for d in drops)
    steps = [s for s in (_said(s, chosen) for s in plan.steps) if s is not None]
    steps.append(Step("left out", f"{dropped:,} bytes", drops[0].reason))
    notes = plan.notes
    if choice is None:
        text = (
            f"copies of tensors hold {weight:,} bytes, more than the output's {output:,}: "
            "a sample of each is compared; --replicas all compares them whole"
        )
        notes = (*notes, ("info", text))
    stored = {k: s for k, s in plan.stored.items() if k in used}
    return replace(plan, relation=made, stored=stored, steps=tuple(steps), notes=notes)


def _said(step: Step, chosen: Choice) -> Step | None:
    """Correct what a step says about copies."""
    if step.kind != "compare":
        return step
    return replace(step, why=f"{step.why}, by a sample") if chosen == "sample" else None


def _itemsize(specs: Mapping[str, Spec], name: str) -> int:
    return dtype_named(specs[name].dtype).itemsize


def _sampled(relation: Relation, copies: list[Pair]) -> tuple[list[Pair], list[Drop]]:
    """Keep three tiles of each replica, counted along its pairs; the rest becomes drops."""
    by_tensor: dict[str, list[Pair]] = {}
    for pair in copies:
        by_tensor.setdefault(pair.left.tensor, []).append(pair)
    kept: list[Pair] = []
    drops: list[Drop] = []
    known: dict[tuple[object, ...], list[tuple[int, Pair, bool]]] = {}
    for name, pairs in by_tensor.items():
        tile = max(1, _TILE // _itemsize(relation.left, name))
        if sum(p.left.numel for p in pairs) <= 3 * tile:
            kept += pairs
            continue
        # Replicas of a model's layers have few forms: where one is cut, the others are.
        form = (tile, *((_form(p.left), _form(p.right)) for p in pairs))
        if form not in known:
            if len(known) >= _FORMS:
                known.clear()
            known[form] = list(_tiles(pairs, tile))
        for i, part, is_kept in known[form]:
            pair, left = pairs[i], Box(name, *_form(part.left))
            if is_kept:
                right = Box(pair.right.tensor, *_form(part.right))
                kept.append(Pair(left, right, pair.left_copy, pair.right_copy))
            else:
                drops.append(Drop(left, _SAMPLED))
    return kept, drops


def _form(box: Box) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return box.offset, box.size, box.stride


def _tiles(pairs: list[Pair], tile: int) -> Iterator[tuple[int, Pair, bool]]:
    """Yield the number of a pair, a part of it, and whether that is kept."""
    total = sum(p.left.numel for p in pairs)
    middle = (total - tile) // 2
    windows = [(0, tile), (middle, middle + tile), (total - tile, total)]
    done = 0
    for i, pair in sorted(enumerate(pairs), key=lambda p: p[1].left.first):
        inside = [(lo - done, hi - done) for lo, hi in windows]
        done += pair.left.numel
        yield from ((i, part, is_kept) for part, is_kept in _cut(pair, inside))


def _cut(pair: Pair, windows: list[tuple[int, int]]) -> Iterator[tuple[Pair, bool]]:
    """Cut a pair at windows of its elements' count (of a strided left box: of its extent, in proportion)."""
    count, first, last = pair.left.numel, pair.left.first, pair.left.last + 1
    turned, at = pair.invert(), first
    for lo, hi in windows:
        begin, end = (first + min(max(x, 0), count) * (last - first) // count for x in (lo, hi))
        yield from ((p.invert(), False) for p in restrict(turned, at, begin))
        yield from ((p.invert(), True) for p in restrict(turned, begin, end))
        at = max(at, end)
    yield from ((p.invert(), False) for p in restrict(turned, at, last))
