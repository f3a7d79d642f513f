"""Add variables of TensorFlow to the graph of a checkpoint, under their torch names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import from_file_tensor
from ckptconv.containers.torch.picklevm import short
from ckptconv.dialects.tensorflow.names import Variable, torch_variable
from ckptconv.dialects.tensorflow.special import Left
from ckptconv.dtypes import BY_NAME, DType
from ckptconv.errors import PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Note
from ckptconv.readers.tensorflow.find import Found
from ckptconv.relations import Box, Drop, Pair

__all__ = ["relate"]

_COUNTED: Final = "running_mean"
_COUNTER: Final = "num_batches_tracked"
_UNCOUNTED: Final = "0: TensorFlow does not count the batches its statistics are of"


def relate(
    graph: GraphBuilder,
    found: Iterable[Found],
    written: Mapping[str, Variable],
    left: Mapping[str, Left],
    *,
    where: Path,
) -> list[Note]:
    """Add variables to a graph under their torch names; what is there twice is compared.

    Raises:
        PlanError: if two variables would be one tensor, or copies differ in shape or type.
    """
    taken: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    for f in sorted(found, key=lambda f: f.name not in written):  # what is copied before its copies
        stored = from_file_tensor(f.tensor)
        graph.store(f.key, stored)
        if f.name not in written:
            item = left[f.name]
            if item.copy_of is None:
                notes.setdefault(item.why, []).append(f.name)
                if stored.numel:
                    graph.left_only.append(Drop(Box.whole(f.key, stored.shape), item.why))
                continue
            variable = Variable(item.copy_of, (), torch_variable(f.name, stored.shape).order)
        else:
            variable = written[f.name]
        first = taken.setdefault(variable.name, f.name)
        is_copy = f.name in left or variable.name in graph.right
        if is_copy and first != f.name and f.name in written:
            raise PlanError(f"{short(first)} and {short(f.name)} would both be {variable.name}", where=where)
        _add(graph, f, variable, is_copy=is_copy, where=where)
    for name in [n for n in graph.right if n.rpartition(".")[2] == _COUNTED]:
        counter = f"{name.removesuffix(_COUNTED)}{_COUNTER}"
        if counter not in graph.right:
            graph.zeros(counter, (), BY_NAME["int64"])
            notes.setdefault(_UNCOUNTED, []).append(counter)
    return [Note("info", f"{names[0]}{_more(names)}: {why}") for why, names in notes.items()]


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _add(graph: GraphBuilder, f: Found, variable: Variable, *, is_copy: bool, where: Path) -> None:
    dtype = _dtype(f.tensor)
    if not is_copy:
        graph.name(variable.name, variable.shape, dtype)
    spec = graph.right.get(variable.name)
    if spec is None or spec.dtype != dtype.name or spec.numel != prod(f.tensor.shape):
        there = "not there" if spec is None else f"{spec.dtype} {list(spec.shape)}"
        raise PlanError(
            f"{short(f.name)} is {f.tensor.dtype} {list(f.tensor.shape)}, and what it copies is {there}",
            where=where,
        )
    if spec.numel:
        box = Box.of(f.key, f.tensor.shape, order=variable.order)
        graph.pairs.append(Pair(box, Box.whole(variable.name, spec.shape), left_copy=is_copy))


def _dtype(tensor: FileTensor) -> DType:
    """Return the dtype in torch: its indices are of 64 bits."""
    return BY_NAME["int64"] if tensor.dtype.name == "int32" else tensor.dtype
