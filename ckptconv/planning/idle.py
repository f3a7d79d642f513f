"""Leave out the router's biases of an architecture that has none, where they decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.errors import PlanError
from ckptconv.places.files import SourceFiles
from ckptconv.plans.assemble import plan_of
from ckptconv.plans.casting import cast_chains
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import OutFile
from ckptconv.relations import Relation
from ckptconv.slots import Table
from ckptconv.slots.translate import some

__all__ = ["IDLE", "idle_biases"]

IDLE: Final = "the same for all experts: it chooses none, and the architecture has no place for it"
_BIAS: Final = ".moe.router_bias"


def idle_biases(
    checkpoint: Checkpoint, relation: Relation, via: Mapping[str, DType], inner: Table, outer: Table
) -> list[str]:
    """Return the router's biases that an architecture has no place for, all of them without an effect.

    torchtitan keeps them for every mixture of experts (0.3, ``models/common/moe.py``,
    ``load_balance_coeff``); they are added to scores only to choose experts, so one number for all of them
    chooses nothing.

    Args:
        checkpoint: The source.
        relation: Its stored tensors to those of the names of a dialect.
        via: Dtypes these are rounded to on the way.
        inner: The dialect's table.
        outer: The architecture's.

    Raises:
        PlanError: if they choose experts, as after a step of training.
    """
    slots = {slot: f.name for f in inner.named(relation.right)[0] for slot in f.slots if slot.endswith(_BIAS)}
    if not slots:
        return []
    left = outer.holding({slot: relation.right[name] for slot, name in slots.items()})[1]
    names = [slots[slot] for slot in left]
    chosen = [name for name in names if not _is_even(checkpoint, relation, via, name)]
    if chosen:
        last = chosen[0].rpartition(".")[2]
        raise PlanError(
            f"the architecture has no place for the biases that choose experts: {some(chosen)}",
            where=checkpoint.data,
            hint=f"--drop '*.{last}' leaves them out, as the library's own export does: tokens that they "
            "sent to other experts are answered otherwise",
        )
    return names


def _is_even(checkpoint: Checkpoint, relation: Relation, via: Mapping[str, DType], name: str) -> bool:
    """Whether all elements of a tensor are the same; a router's bias is as long as there are experts."""
    spec = relation.right[name]
    dtype = dtype_named(spec.dtype)
    size = spec.numel * dtype.itemsize
    one = relation.select([name])
    casts = cast_chains(checkpoint, one, {n: d for n, d in via.items() if n == name})
    file = OutFile(name, "safetensors", FileLayout(size, (), (Placed(name, dtype, spec.shape, 0),)))
    plan = plan_of(checkpoint, one, casts, [file], {})
    with SourceFiles(plan.inputs) as sources:
        data = bytes(Filler(plan, file, sources, pairs_by_tensor(one)).fill(0, size, Buffers())[0])
    return data == data[: dtype.itemsize] * spec.numel
