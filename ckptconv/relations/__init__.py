"""Relate tensors element by element: boxes, relations and packings. Pure data, no I/O."""

from ckptconv.relations.box import Box
from ckptconv.relations.packing import (
    chunk_sizes,
    concat,
    grouped,
    interleaved,
    one,
    padded,
    partitioned,
    per_rank,
    replicated,
    rotary,
    split,
    stacked,
    tiled,
    transposed,
)
from ckptconv.relations.pair import Drop, Pair, Spec, join, restrict
from ckptconv.relations.relation import Relation
from ckptconv.relations.terms import Constant, LowRank, Scaled, Term, Terms

__all__ = [
    "Box",
    "Constant",
    "Drop",
    "LowRank",
    "Pair",
    "Relation",
    "Scaled",
    "Spec",
    "Term",
    "Terms",
    "chunk_sizes",
    "concat",
    "grouped",
    "interleaved",
    "join",
    "one",
    "padded",
    "partitioned",
    "per_rank",
    "replicated",
    "restrict",
    "rotary",
    "split",
    "stacked",
    "tiled",
    "transposed",
]
