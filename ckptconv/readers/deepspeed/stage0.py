"""Give the nameless fp32 masters of stage 0 their names.

``FP16_Optimizer`` keeps one flat run per optimizer group (``fp32_groups_flat``, deepspeed 0.19.8
``runtime/fp16/fused_optimizer.py``), ``FP16_UnfusedOptimizer`` a list of shaped tensors per group
(``fp32_groups``, ``runtime/fp16/unfused_optimizer.py``). Neither stores names, so the values tell them
(`values`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import concatenated
from ckptconv.errors import PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.readers.deepspeed.masters import Master
from ckptconv.readers.deepspeed.states import as_dict
from ckptconv.readers.deepspeed.values import Wanted, find_by_values
from ckptconv.readers.sample import Sampler
from ckptconv.relations import Box, Drop

__all__ = ["has_masters", "nameless_masters"]


def has_masters(optimizer: object) -> bool:
    """Whether a stage 0 optimizer state keeps fp32 masters apart from the module."""
    state = as_dict(optimizer)
    return bool(state.get("fp32_groups_flat") or state.get("fp32_groups"))


def nameless_masters(
    optimizer: Mapping[str, Any],
    module: Mapping[str, FileTensor],
    graph: GraphBuilder,
    prefix: str,
    sampler: Sampler,
    where: Path,
) -> dict[str, Master]:
    """Match every master with the parameter it rounds to.

    Args:
        optimizer: The optimizer's state.
        module: The 16-bit parameters, without buffers and aliases, in the module's order.
        graph: Receives the stored masters.
        prefix: Prefix for their keys.
        sampler: Reads the elements that decide.
        where: The file, for errors.

    Raises:
        PlanError: if a master rounds to no parameter that is left.
    """
    left = {n: Wanted(n, t.shape, (t,)) for n, t in module.items()}
    masters: dict[str, Master] = {}
    groups = [list(group) for group in optimizer.get("fp32_groups") or []]
    groups += [[flat] for flat in optimizer.get("fp32_groups_flat") or []]
    for g, parts in enumerate(groups):
        key = f"{prefix}fp32_group_{g}"
        flat = concatenated(parts, (sum(t.numel for t in parts),))
        graph.store(key, flat)
        padding = min((w.numel for w in left.values() if w.numel), default=1) - 1
        placed = find_by_values(flat, list(left.values()), sampler, padding=padding)
        if placed is None:
            raise PlanError(
                f"the masters of optimizer group {g} do not round to parameters of the module",
                where=where,
                hint="the optimizer and the module are of different steps; take --weights model",
            )
        used = 0
        for name, shape, at in placed:
            used = at + prod(shape)
            masters[name] = Master(shape, (Box.interval(key, at, used),))
            del left[name]
        if used < flat.numel:
            graph.left_only.append(Drop(Box.interval(key, used, flat.numel), "optimizer padding"))
    return masters
