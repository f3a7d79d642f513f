"""Leave out the padding of vocabularies where two checkpoints are compared as they are."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from ckptconv.errors import CkptconvError
from ckptconv.planning.model import find_architecture
from ckptconv.plans.checkpoint import Checkpoint, settled
from ckptconv.plans.request import Request
from ckptconv.relations import Box, Drop, Pair, Relation

__all__ = ["true_rows", "without_padding"]

_SLOTS = ("embed", "head", "head.bias")
_REASON = "vocabulary padding"


def true_rows(checkpoint: Checkpoint, options: Request) -> int | None:
    """Return how many rows of a vocabulary are true; None where nothing says it, or there is no table."""
    if checkpoint.table is None:
        return None
    if options.vocab_size is not None:
        return options.vocab_size
    try:
        config = find_architecture(settled(checkpoint), options, needed=False).config
    except CkptconvError:
        return None  # its names alone are compared
    rows = None if config is None else config.values.get("vocab_size")
    return rows if isinstance(rows, int) else None


def without_padding(checkpoint: Checkpoint, rows: int) -> Checkpoint:
    """Return a checkpoint whose vocabulary ends with its true rows; itself where there are no others."""
    assert checkpoint.table is not None
    held = {e.name for e in checkpoint.table.entries if e.pack in _SLOTS}
    there = checkpoint.relation.right
    cut = {n for n in held & there.keys() if there[n].shape and there[n].shape[0] > rows}
    if not cut:
        return checkpoint
    right = {n: s._replace(shape=(rows, *s.shape[1:])) if n in cut else s for n, s in there.items()}
    pairs = []
    padding = []
    for name, spec in there.items():
        kept = prod(right[name].shape)
        pairs.append(Pair(Box.interval(name, 0, kept), Box.interval(name, 0, kept)))
        if name in cut:
            padding.append(Drop(Box.interval(name, kept, spec.numel), _REASON))
    relation = checkpoint.relation.compose(Relation(there, right, tuple(pairs), tuple(padding)))
    return replace(checkpoint, relation=relation)
