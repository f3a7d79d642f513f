"""Name the logical tensors every transformer has, and say how stored tensors pack them."""

from ckptconv.slots.entry import Entry, linear, one, predicting
from ckptconv.slots.pack import (
    Pack,
    columns,
    concat,
    grouped,
    interleaved,
    leaves,
    paired,
    rotary,
    rows,
    stacked,
    swapped,
    transposed,
)
from ckptconv.slots.part import Part
from ckptconv.slots.shapes import SHAPES, Dims, Sizes, shape_of, template
from ckptconv.slots.table import Found, Table
from ckptconv.slots.words import ANY, Words

__all__ = [
    "ANY",
    "SHAPES",
    "Dims",
    "Entry",
    "Found",
    "Pack",
    "Part",
    "Sizes",
    "Table",
    "Words",
    "columns",
    "concat",
    "grouped",
    "interleaved",
    "leaves",
    "linear",
    "one",
    "paired",
    "predicting",
    "rotary",
    "rows",
    "shape_of",
    "stacked",
    "swapped",
    "template",
    "transposed",
]
