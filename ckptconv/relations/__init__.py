"""Relate tensors element by element: boxes, relations and packings. Pure data, no I/O."""

from ckptconv.relations.alike import representatives
from ckptconv.relations.box import Box
from ckptconv.relations.packing import (
    chunk_sizes,
    halved,
    in_a_row,
    in_turns,
    padded,
    partitioned,
    permuted,
    piled,
    renamed,
    replicated,
    row_by_row,
    split,
    swapped,
    tiled,
)
from ckptconv.relations.pair import Drop, Pair, Spec, join, restrict
from ckptconv.relations.relation import Relation
from ckptconv.relations.terms import Constant, InBlocks, LowRank, Mean, Scaled, Term, Terms

__all__ = [
    "Box",
    "Constant",
    "Drop",
    "InBlocks",
    "LowRank",
    "Mean",
    "Pair",
    "Relation",
    "Scaled",
    "Spec",
    "Term",
    "Terms",
    "chunk_sizes",
    "halved",
    "in_a_row",
    "in_turns",
    "join",
    "padded",
    "partitioned",
    "permuted",
    "piled",
    "renamed",
    "replicated",
    "representatives",
    "restrict",
    "row_by_row",
    "split",
    "swapped",
    "tiled",
]
