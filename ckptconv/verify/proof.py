"""Prove from metadata alone that nothing is lost on the way, and that the way back leads to the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from time import perf_counter

from ckptconv.dtypes import DType
from ckptconv.errors import PlanError
from ckptconv.numbers.casts import is_exact
from ckptconv.relations import Mean, Relation, representatives
from ckptconv.relations.terms import Terms
from ckptconv.verify.result import Mismatch, Proof

__all__ = ["prove"]


def prove(
    relations: Sequence[Relation], casts: Mapping[str, Sequence[DType]], terms: Terms
) -> tuple[Proof, list[Mismatch]]:
    """Check that relations account for every element once, and that there and back is the identity.

    It is so exactly on the side of whole tensors, and up to declared replicas, padding and drops on the side
    of shards.

    Args:
        relations: Stored tensors to tensors, of the source and, where it has names of its own, of the output.
        casts: Types that values pass through.
        terms: What is added to values: it has no inverse.
    """
    begin = perf_counter()
    wrong: list[Mismatch] = []
    for relation in relations:
        wrong += _wrong(relation)
    rounded = [n for n, chain in casts.items() if not all(is_exact(a, b) for a, b in pairwise(chain))]
    means = sum(isinstance(of[0], Mean) for of in terms.values())
    added = len(terms) - means
    counts = ((added, "something is added"), (means, "an average"), (len(rounded), "rounded"))
    said = tuple([_count(count, what) for count, what in counts if count])
    return Proof(
        sum(len(r.pairs) for r in relations), not wrong, not wrong and not said, said, perf_counter() - begin
    ), wrong


def _wrong(relation: Relation) -> list[Mismatch]:
    """Say what is wrong with a relation: what is alike is looked at once, all if that is not sound."""
    return _wrong_of(relation) if _wrong_of(representatives(relation)) else []


def _wrong_of(relation: Relation) -> list[Mismatch]:
    try:
        relation.check()
    except PlanError as e:
        return [Mismatch("metadata", "", e.message)]
    inverse = relation.invert()
    sides = {"left": relation.compose(inverse), "right": inverse.compose(relation)}
    return [
        Mismatch("metadata", "", f"the round trip of the {side} side does not end where it begins")
        for side, there_and_back in sides.items()
        if not there_and_back.is_identity()
    ]


def _count(count: int, what: str) -> str:
    """Say of how many tensors something is true."""
    return f"{count} tensor{'' if count == 1 else 's'}: {what}"
