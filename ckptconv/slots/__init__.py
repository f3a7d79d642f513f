"""Name the logical tensors every transformer has, and say how stored tensors pack them."""

from ckptconv.slots.entry import Entry, linear, one
from ckptconv.slots.pack import (
    Pack,
    columns,
    concat,
    grouped,
    interleaved,
    leaves,
    rotary,
    rows,
    stacked,
    transposed,
)
from ckptconv.slots.shapes import SHAPES, Dims, shape_of, template
from ckptconv.slots.table import Found, Table

__all__ = [
    "SHAPES",
    "Dims",
    "Entry",
    "Found",
    "Pack",
    "Table",
    "columns",
    "concat",
    "grouped",
    "interleaved",
    "leaves",
    "linear",
    "one",
    "rotary",
    "rows",
    "shape_of",
    "stacked",
    "template",
    "transposed",
]
