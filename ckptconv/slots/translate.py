"""Translate tensors between a producer's names and Hugging Face's, by way of slots."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ckptconv.errors import PlanError
from ckptconv.relations import Box, Drop, Pair, Relation, Spec, renamed
from ckptconv.slots import Dims, Table

__all__ = ["from_slots", "some", "to_slots", "without"]


def some(names: Sequence[str], count: int = 4) -> str:
    """List the first names, and say how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def to_slots(
    tensors: Mapping[str, Spec], table: Table, dims: Dims, *, what: str, passing: Collection[str] = ()
) -> Relation:
    """Relate named tensors (left) to slots (right).

    Args:
        tensors: Shape and dtype by name.
        table: Where the names are looked up.
        dims: The sizes of the model.
        what: Where those are from, for errors.
        passing: Names the table need not know; they stay as they are.

    Raises:
        PlanError: if a name is unknown, a slot is held twice, or a shape is not the one asked for.
    """
    found, unknown = table.named(tensors)
    refused = [name for name in unknown if name not in passing]
    if refused:
        raise PlanError(
            f"unknown: {some(refused)}",
            hint="leave them out with --drop, or let them pass under a name given with --rename",
        )
    held: dict[str, str] = {}
    for f in found:
        for slot in f.slots:
            if not f.entry.copy and held.setdefault(slot, f.name) != f.name:
                raise PlanError(f"{held[slot]} and {f.name} are the same part of the model ({slot})")
    kept = [renamed(name, name, tensors[name]) for name in unknown]
    return Relation.union([table.relation(tensors, found, dims, what), *kept])


def from_slots(
    slots: Mapping[str, Spec], table: Table, dims: Dims, *, who: str, passing: Collection[str] = ()
) -> Relation:
    """Relate slots (left) to the tensors a table names (right).

    Raises:
        PlanError: if the table has no place for a slot.
    """
    plain = {n: s for n, s in slots.items() if n not in passing}
    found, left = table.holding(plain)
    if left:
        raise PlanError(
            f"{who} has no place for {some(left)}",
            hint="give the --family the model is of, or leave tensors out with --drop",
        )
    specs = table.specs(found, plain, dims)
    made = table.relation(specs, found, dims, who).invert()
    return Relation.union([made, *(renamed(n, n, slots[n]) for n in passing)])


def without(relation: Relation, names: Collection[str], reason: str) -> Relation:
    """Leave right tensors out of a relation; what they are made of becomes a drop with this reason."""
    if not names:
        return relation
    kept = {n: s for n, s in relation.right.items() if n not in names}
    pairs = tuple([Pair(Box.whole(n, s.shape), Box.whole(n, s.shape)) for n, s in kept.items()])
    drops = tuple([Drop(Box.whole(n, relation.right[n].shape), reason) for n in names])
    return relation.compose(Relation(dict(relation.right), kept, pairs, left_only=drops))
