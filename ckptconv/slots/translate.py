"""Translate tensors between a producer's names and Hugging Face's, by way of slots."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError
from ckptconv.relations import Box, Drop, Pair, Relation, Spec, renamed
from ckptconv.slots import Dims, Table

__all__ = [
    "as_copy",
    "as_stored",
    "follow_through",
    "from_slots",
    "pad_vocabulary",
    "retyped",
    "some",
    "to_slots",
    "with_tied_head",
    "without",
]


def some(names: Sequence[str], count: int = 4) -> str:
    """List the first names, and say how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _way(unknown: Sequence[str]) -> str:
    """Say what to do about names without a place: what lies inside a layer is computed with."""
    if all("mtp" in name.split(".") for name in unknown):
        return "--drop 'mtp.*' leaves the layers for multi-token prediction out: the model does without them"
    if any(word.isdigit() for name in unknown for word in name.split(".")):
        return (
            "the model computes with them: give the --config or --family of this very model, or let them "
            "pass under a name given with --rename"
        )
    return "leave them out with --drop, or let them pass under a name given with --rename"


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
    table = table.with_own(dims)
    found, unknown = table.named(tensors)
    refused = [name for name in unknown if name not in passing]
    if refused:
        raise PlanError(
            f"unknown: {some(refused)}",
            hint=_way(refused),
        )
    held: dict[str, str] = {}
    for f in found:
        for slot in () if f.entry.copy else f.slots:
            if held.setdefault(slot, f.name) != f.name:
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
            hint=f"give the --family the model is of; {_way(left)}",
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


def as_copy(relation: Relation, name: str, kept: str) -> Relation:
    """Turn a tensor into a replica of another: it is compared with it instead of written."""
    pairs = tuple(
        p._replace(right=p.right._replace(tensor=kept), left_copy=True) if p.right.tensor == name else p
        for p in relation.pairs
    )
    return replace(relation, pairs=pairs, right={n: s for n, s in relation.right.items() if n != name})


def with_tied_head(relation: Relation, target: Relation) -> Relation:
    """Provide the head from the embedding where a target holds a copy and the source, tied, has none."""
    if "head" not in target.left or "head" in relation.right or "embed" not in relation.right:
        return relation
    embed = relation.right["embed"]
    copies = tuple(
        p._replace(right=p.right._replace(tensor="head"), right_copy=True)
        for p in relation.pairs
        if p.right.tensor == "embed" and not p.left_copy
    )
    return replace(relation, right={**relation.right, "head": embed}, pairs=relation.pairs + copies)


def retyped(relation: Relation, tensors: Mapping[str, Spec]) -> Relation:
    """Give a relation's left tensors these types, and each right tensor that of what it is made of.

    Raises:
        PlanError: if the left side is not these tensors.
    """
    if missing := sorted(relation.left.keys() - tensors.keys()):
        raise PlanError(
            f"the target needs {some(missing)}, which the source has not",
            hint="choose a model with the same layers, or another target",
        )
    if beyond := sorted(tensors.keys() - relation.left.keys()):
        raise PlanError(
            f"the target has no place for {some(beyond)}",
            hint="leave tensors out with --drop, or choose another target",
        )
    if wrong := [n for n, s in relation.left.items() if tensors[n].shape != s.shape]:
        n = wrong[0]
        raise PlanError(
            f"{n} is {list(tensors[n].shape)} in the source, {list(relation.left[n].shape)} in the target"
        )
    dtypes = {p.right.tensor: tensors[p.left.tensor].dtype for p in relation.pairs}
    right = {
        n: s if (dtype := dtypes.get(n, s.dtype)) == s.dtype else s._replace(dtype=dtype)
        for n, s in relation.right.items()
    }
    return replace(relation, left={n: tensors[n] for n in relation.left}, right=right)


def follow_through(via: Mapping[str, DType], relation: Relation) -> dict[str, DType]:
    """Return what tensors pass through on the way by the names they are given."""
    return {p.right.tensor: via[p.left.tensor] for p in relation.pairs if p.left.tensor in via}


def as_stored(relation: Relation, wanted: Mapping[str, str]) -> Relation:
    """Give floating-point tensors of the right side the element types ``wanted``, by name."""
    if not wanted:
        return relation
    right = {
        n: s._replace(dtype=wanted[n])
        if n in wanted and dtype_named(wanted[n]).kind == dtype_named(s.dtype).kind == "float"
        else s
        for n, s in relation.right.items()
    }
    return replace(relation, right=right)


def pad_vocabulary(relation: Relation) -> Relation:
    """Fill the padding of a vocabulary (rows of the right side no slot holds) with its last true row.

    So do Megatron's and ModelLink's own converters (Megatron-LM core_v0.16.1,
    ``tools/checkpoint/saver_base.py``; ModelLink d4feda79, ``modellink/tasks/checkpoint/saver.py``).
    """
    pairs = list(relation.pairs)
    kept = []
    for drop in relation.right_only:
        name = drop.box.tensor
        source = next((p.left.tensor for p in relation.pairs if p.right.tensor == name), None)
        if source is None or drop.reason != "vocabulary padding":
            kept.append(drop)
            continue
        shape = relation.right[name].shape
        rows, width = relation.left[source].shape[0], max(1, relation.right[name].numel // shape[0])
        last = Box.interval(source, (rows - 1) * width, rows * width)
        pairs += [
            Pair(last, Box.interval(name, r * width, (r + 1) * width), right_copy=True)
            for r in range(rows, shape[0])
        ]
    return Relation(relation.left, relation.right, tuple(pairs), relation.left_only, tuple(kept))
