"""Relate tensors element by element: boxes, relations and packings. Pure data, no I/O."""

from ckptconv.graph.box import Box
from ckptconv.graph.packing import (
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
from ckptconv.graph.pair import Drop, Pair, Spec, join, restrict
from ckptconv.graph.plan import AssetFile, OutFile, Plan, Step
from ckptconv.graph.relation import Relation
from ckptconv.graph.terms import Constant, LowRank, Scaled, Term, Terms

__all__ = [
    "AssetFile",
    "Box",
    "Constant",
    "Drop",
    "LowRank",
    "OutFile",
    "Pair",
    "Plan",
    "Relation",
    "Scaled",
    "Spec",
    "Step",
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
