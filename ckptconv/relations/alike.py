"""Keep one of each set of parts of a relation that are alike: layers, experts and stages."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

from ckptconv.relations.box import Box
from ckptconv.relations.pair import Drop, Pair, Spec
from ckptconv.relations.relation import Relation

__all__ = ["representatives"]


def representatives(relation: Relation) -> Relation:
    """Return the part of a relation that is sound, and leads there and back, if all of it does.

    Tensors that pairs join, directly or by way of others, are a part of their own: what is said of one does
    not concern the rest. Of parts that differ in the names of their tensors alone the first is kept, and of
    replicas of the same elements, of which there may be one on every rank, the first of those that are alike.
    """
    relation = _few_replicas(relation)
    seen: set[Hashable] = set()
    kept = _Part()
    for part in _parts(relation):
        form = part.form(relation)
        if form not in seen:
            seen.add(form)
            kept.add(part)
    return Relation(
        {name: relation.left[name] for name in kept.left if name in relation.left},
        {name: relation.right[name] for name in kept.right if name in relation.right},
        tuple(kept.pairs),
        tuple(kept.left_only),
        tuple(kept.right_only),
    )


def _few_replicas(relation: Relation) -> Relation:
    """Keep one of the tensors that are replicas of the same elements, and alike."""
    left = _alike_replicas(relation.left, relation.pairs, relation.left_only, at_right=False)
    right = _alike_replicas(relation.right, relation.pairs, relation.right_only, at_right=True)
    if not left and not right:
        return relation
    return Relation(
        {name: spec for name, spec in relation.left.items() if name not in left},
        {name: spec for name, spec in relation.right.items() if name not in right},
        tuple([p for p in relation.pairs if p.left.tensor not in left and p.right.tensor not in right]),
        relation.left_only,
        relation.right_only,
    )


def _alike_replicas(
    specs: Mapping[str, Spec], pairs: Iterable[Pair], drops: Iterable[Drop], *, at_right: bool
) -> set[str]:
    """Return the tensors of one side that are replicas and nothing else, but for the first of those alike."""
    others = {drop.box.tensor for drop in drops}
    copies: dict[str, list[Pair]] = {}
    for pair in pairs:
        name = pair.right.tensor if at_right else pair.left.tensor
        if pair.right_copy if at_right else pair.left_copy:
            copies.setdefault(name, []).append(pair)
        else:
            others.add(name)
    seen: set[Hashable] = set()
    alike: set[str] = set()
    for name, held in copies.items():
        if name in others:
            continue
        ends = [(p.right[1:], p.left) if at_right else (p.left[1:], p.right) for p in held]
        form = (
            specs.get(name),
            tuple([(*both, p.left_copy, p.right_copy) for both, p in zip(ends, held, strict=True)]),
        )
        if form in seen:
            alike.add(name)
        else:
            seen.add(form)
    return alike


class _Part:
    """Tensors that pairs join, in the order in which the relation speaks of them, and all it says of them."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.right: dict[str, int] = {}
        self.pairs: list[Pair] = []
        self.left_only: list[Drop] = []
        self.right_only: list[Drop] = []
        self.into: _Part | None = None  # what it has become a part of

    def add(self, other: _Part) -> None:
        for name in other.left:
            self.left.setdefault(name, len(self.left))
        for name in other.right:
            self.right.setdefault(name, len(self.right))
        self.pairs += other.pairs
        self.left_only += other.left_only
        self.right_only += other.right_only

    def form(self, relation: Relation) -> Hashable:
        """Return all that is said, with numbers in place of the tensors' names."""
        left, right = self.left, self.right
        return (
            tuple(map(relation.left.get, left)),
            tuple(map(relation.right.get, right)),
            tuple(
                [(_form(p.left, left), _form(p.right, right), p.left_copy, p.right_copy) for p in self.pairs]
            ),
            tuple([_form(d.box, left) for d in self.left_only]),
            tuple([_form(d.box, right) for d in self.right_only]),
        )


def _form(box: Box, numbers: dict[str, int]) -> Hashable:
    return numbers[box.tensor], box.offset, box.size, box.stride


def _parts(relation: Relation) -> Iterator[_Part]:
    """Yield the parts, in the order of their first tensors."""
    part_of: dict[tuple[str, str], _Part] = {}

    def find(side: str, name: str) -> _Part:
        part = part_of.get((side, name))
        if part is None:
            part = part_of[side, name] = _Part()
            (part.left if side == "left" else part.right)[name] = 0
        while part.into is not None:
            part = part.into
        part_of[side, name] = part
        return part

    for name in relation.left:
        find("left", name)
    for name in relation.right:
        find("right", name)
    for pair in relation.pairs:
        one, two = find("left", pair.left.tensor), find("right", pair.right.tensor)
        if one is not two:
            if len(one.pairs) < len(two.pairs):
                one, two = two, one
            one.add(two)
            two.into = one
        one.pairs.append(pair)
    for drop in relation.left_only:
        find("left", drop.box.tensor).left_only.append(drop)
    for drop in relation.right_only:
        find("right", drop.box.tensor).right_only.append(drop)
    yielded: set[int] = set()
    for side, name in list(part_of):
        part = find(side, name)
        if id(part) not in yielded:
            yielded.add(id(part))
            yield part
