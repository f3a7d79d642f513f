"""Put decoded weights in the place of the codes and scales they are stored as."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from ckptconv.containers.decoded import Decoded
from ckptconv.containers.stored import Stored
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import PlanError
from ckptconv.planning.decode.part import Part
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.relations import Box, Drop, Pair, Relation, Spec

__all__ = ["pairs_of", "rewritten", "stored_of"]

_FLOAT32 = BY_NAME["float32"]
_IDLE = "a scale of activations or caches: values of weights need none"
_READ = "says how a weight is quantised, or what its shape is"


def pairs_of(relation: Relation) -> dict[str, Pair]:
    """Return the pair that is all of a tensor, by its name; those of several have none."""
    found: dict[str, Pair] = {}
    several = set()
    for pair in relation.pairs:
        if pair.right.tensor in found:
            several.add(pair.right.tensor)
        found[pair.right.tensor] = pair
    return {n: p for n, p in found.items() if n not in several}


def stored_of(checkpoint: Checkpoint, pairs: Mapping[str, Pair], name: str) -> Stored:
    """Return where a tensor lies as it is.

    Raises:
        PlanError: if it is cut over files, turned or cast.
    """
    kept = checkpoint.aliases.get(name, name)
    pair, spec = pairs.get(kept), checkpoint.relation.right[kept]
    if pair is not None:
        stored = checkpoint.stored[pair.left.tensor]
        straight = pair.left.is_contiguous and pair.right.is_contiguous
        whole = pair.left.offset == 0 and pair.left.numel == stored.numel == spec.numel
        if straight and whole and stored.dtype.name == spec.dtype:
            return stored
    raise PlanError(
        f"{name} is a code or scale of a quantised weight, but does not lie in one piece",
        where=checkpoint.data,
        hint="only quantised models as they were published are decoded",
    )


def rewritten(checkpoint: Checkpoint, parts: Collection[Part], idle: Collection[str]) -> Checkpoint:
    """Put decoded weights in the place of codes and scales."""
    relation, stored = checkpoint.relation, dict(checkpoint.stored)
    whole = pairs_of(relation)
    made = {p.operands["codes"][0]: p for p in parts}
    gone = {n for p in parts for n in p.members} | set(idle)
    taken = {n for p in parts for n, _ in p.operands.values()}
    kept = {checkpoint.aliases.get(n, n) for n in taken}
    left = dict(relation.left)
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    drops = list(relation.left_only)
    for name, spec in relation.right.items():
        for alias in (name, *(a for a, b in checkpoint.aliases.items() if b == name and a in made)):
            if (part := made.get(alias)) is not None:
                if part.name in right or (part.name in relation.right and part.name not in gone):
                    raise PlanError(f"{part.name} is there twice, quantised and plain", where=checkpoint.data)
                pair = _decoded_pair(checkpoint, whole, part, stored)
                left[pair.left.tensor] = Spec(stored[pair.left.tensor].shape, _FLOAT32.name)
                right[part.name] = Spec(part.shape, part.dtype)
                pairs.append(pair)
        if name not in gone and name not in kept:
            right[name] = spec
    for pair in relation.pairs:
        name = pair.right.tensor
        if name in right and name not in gone:
            pairs.append(pair)
        elif name in kept:
            left.pop(pair.left.tensor, None)
        elif pair.left.numel:
            drops.append(Drop(pair.left, _IDLE if name in idle else _READ))
    names = right.keys()
    return replace(
        checkpoint,
        stored=stored,
        relation=replace(relation, left=left, right=right, pairs=tuple(pairs), left_only=tuple(drops)),
        via={n: d for n, d in checkpoint.via.items() if n in names and n not in gone},
        aliases={a: b for a, b in checkpoint.aliases.items() if a not in gone and b in names},
    )


def _decoded_pair(
    checkpoint: Checkpoint, pairs: Mapping[str, Pair], part: Part, stored: dict[str, Stored]
) -> Pair:
    """Store a weight that is computed, and relate it to its name."""
    operands: dict[str, Stored] = {}
    for role, (name, matrix) in part.operands.items():
        held = stored_of(checkpoint, pairs, name)
        operands[role] = Stored(held.dtype, matrix, held.extents)
    shape = part.shape if part.order is None else tuple([part.shape[a] for a in part.order])
    key = f"decoded/{part.name}"
    stored[key] = Decoded(
        _FLOAT32,
        shape,
        operands["codes"].extents,
        part.name,
        part.codec,
        dict(part.params),
        operands,
        {role: name for role, (name, _) in part.operands.items()},
        part.kind,
    )
    here = Box.whole(part.name, shape)
    if part.order is not None:
        here = Box.of(part.name, part.shape, order=part.order)
    return Pair(Box.whole(key, shape), here)
