"""Make a plan of what is read of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ckptconv.dtypes import DType
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.relations import Relation, Terms

__all__ = ["plan_of"]


def plan_of(
    checkpoint: Checkpoint,
    relation: Relation,
    casts: Mapping[str, tuple[DType, ...]],
    files: Sequence[OutFile] = (),
    terms: Terms = MappingProxyType({}),
    notes: Sequence[tuple[str, str]] = (),
) -> Plan:
    """Make a plan of what a relation reads of a checkpoint.

    Args:
        checkpoint: The source.
        relation: Its stored tensors to the tensors to be written, or to be read.
        casts: Dtypes tensors pass through.
        files: The files to be written; none where tensors are only read.
        terms: What is added to tensors.
        notes: ``(level, text)`` for people.
    """
    used = {p.left.tensor for p in relation.pairs}
    return Plan(
        source=str(checkpoint.root),
        producer=checkpoint.producer,
        relation=relation,
        stored={k: s for k, s in checkpoint.stored.items() if k in used},
        casts=casts,
        files=tuple(files),
        inputs=checkpoint.files,
        notes=tuple(notes),
        terms=dict(terms),
        origin={"producer": checkpoint.producer, "format": checkpoint.format, "step": checkpoint.iteration},
    )
