"""Give the nameless fp32 masters of stage 0 their names.

``FP16_Optimizer`` keeps one flat run per optimizer group (``fp32_groups_flat``, deepspeed 0.19.8
``runtime/fp16/fused_optimizer.py``), ``FP16_UnfusedOptimizer`` a list of shaped tensors per group
(``fp32_groups``, ``runtime/fp16/unfused_optimizer.py``). Neither stores names. A master is the value its
16-bit parameter was rounded from, so each is given to a parameter that it rounds to, the next in the module's
order after the one before it if several do (norms that are still all ones); the whole of it is compared again
while it is converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import Stored, concatenated, from_file_tensor
from ckptconv.errors import PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.readers.deepspeed.masters import Master
from ckptconv.readers.deepspeed.states import as_dict
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
    masters: dict[str, Master] = {}
    order = list(module)
    last = -1

    def take(key: str, stored: Stored, at: int, shape: tuple[int, ...] | None) -> int:
        nonlocal last
        for i in (*range(last + 1, len(order)), *range(last + 1)):
            name, tensor = order[i], module[order[i]]
            if name in masters or shape not in (None, tensor.shape) or at + tensor.numel > stored.numel:
                continue
            if tensor.numel and not sampler.rounds_to(stored, at, tensor):
                continue
            box = (Box.interval(key, at, at + tensor.numel),) if tensor.numel else ()
            masters[name] = Master(tensor.shape, box)
            last = i
            return tensor.numel
        raise PlanError(
            f"the master at element {at} of {key} rounds to no parameter of the module",
            where=where,
            hint="the optimizer and the module are of different steps; take --weights model",
        )

    for g, group in enumerate(optimizer.get("fp32_groups") or []):
        last = -1
        for i, tensor in enumerate(group):
            key = f"{prefix}fp32_group_{g}/{i}"
            stored = from_file_tensor(tensor)
            graph.store(key, stored)
            take(key, stored, 0, tensor.shape)
    for g, flat in enumerate(optimizer.get("fp32_groups_flat") or []):
        key = f"{prefix}fp32_group_{g}"
        stored = concatenated([flat], (flat.numel,))
        graph.store(key, stored)
        at, smallest = 0, min((prod(t.shape) for t in module.values()), default=1)
        last = -1
        while stored.numel - at >= max(smallest, 1) and len(masters) < len(order):
            at += take(key, stored, at, None)
        if at < stored.numel:
            graph.left_only.append(Drop(Box.interval(key, at, stored.numel), "optimizer padding"))
    return masters
