"""Locate what ZeRO stage 3 stores: every parameter is cut over all ranks by itself, the last parts padded.

Layout: deepspeed 0.19.8, ``runtime/zero/stage3.py`` and ``partition_parameters.py``.
"""

from __future__ import annotations

from math import prod

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import concatenated
from ckptconv.containers.torch.torchtensors import refuse_odd
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.readers.deepspeed.masters import Master, Shape
from ckptconv.readers.deepspeed.releases import orders_by_module
from ckptconv.readers.deepspeed.states import ModelRank, as_dict, value
from ckptconv.relations import partitioned

__all__ = ["zero3_frozen", "zero3_masters"]

_OLD = (
    "resume once with deepspeed 0.9.1 or later and save again, or convert the 16-bit weights that "
    "save_fp16_model() gathered (pytorch_model.bin), if they are there"
)


def zero3_masters(rank: ModelRank, graph: GraphBuilder) -> dict[str, Master]:
    """Locate masters of stage 3: every parameter is cut over all ranks, the last parts padded.

    A rank's sub-groups follow one another, so that the whole is one matrix ``[ranks, row]`` in which a
    parameter is a block of columns.

    Raises:
        PlanError: if rows differ in length or the parameters do not fill them.
    """
    world = len(rank.optim)
    first = rank.optim[0]
    if first.get("ds_zero_partition_groups"):
        raise FormatError(
            "expert parameters are partitioned over groups of their own (AutoEP), which is not supported",
            where=rank.optim_paths[0],
        )
    count = value(first.get("partition_count", world))
    if count != world:
        raise PlanError(
            f"the parameters are cut into {count} partitions, but {world} optimizer files were found",
            where=rank.optim_paths[0],
            hint="copy the *_optim_states.pt files of every rank; MiCS shard groups are not supported",
        )
    shapes = rank.param_shapes()
    if shapes is None:
        raise PlanError("no 'param_shapes' says which parameters the partitions hold", where=rank.head_path)
    rows: list[FileTensor] = []
    lengths = []
    for r, state in enumerate(rank.optim):
        groups = state.get("fp32_flat_groups")
        for group in groups if isinstance(groups, list) else ():
            refuse_odd("fp32_flat_groups", group, rank.optim_paths[r])
        if not isinstance(groups, list) or not all(isinstance(t, FileTensor) for t in groups):
            raise FormatError("no 'fp32_flat_groups' in the optimizer states", where=rank.optim_paths[r])
        rows += groups
        lengths.append(sum(t.numel for t in groups))
        if lengths[r] != lengths[0]:
            raise PlanError(
                f"data-parallel rank {r} holds {lengths[r]} elements, rank 0 holds {lengths[0]}",
                where=rank.optim_paths[r],
                hint="the files are of different saves; copy one whole save",
            )
    row = lengths[0]
    named = {k: v for group in shapes for k, v in group.items()}
    need = sum(-(-prod(s) // world) for s in named.values())
    if row and orders_by_module(rank):
        _check_order(rank, row, need)
    if need != row:
        empty = row == 0 and need > 0
        raise PlanError(
            "the fp32 partitions are empty: the optimizer was offloaded to NVMe"
            if empty
            else f"each rank holds {row} fp32 elements, but its parameters need {need}",
            where=rank.optim_paths[0],
            hint="save with offload_optimizer.device cpu or none"
            if empty
            else "the files are of different saves",
        )
    key = f"mp_rank_{rank.mp:02d}/fp32"
    graph.store(key, concatenated(rows, (world, row)))
    masters, at = {}, 0
    for name, shape in named.items():
        masters[name] = _cut_over_ranks(graph, key, shape, world, row, at)
        at += -(-prod(shape) // world)
    return masters


def _check_order(rank: ModelRank, row: int, need: int) -> None:
    """Refuse what lists parameters in the module's order, unless that is the order of the partitions too.

    Raises:
        PlanError: if there are frozen parameters among them, or several optimizer groups. The files hold no
            16-bit weights that could prove an order.
    """
    state = rank.optim[0]
    groups = as_dict(state.get("optimizer_state_dict")).get("param_groups")
    count = len(groups) if isinstance(groups, list) else len(state["fp32_flat_groups"])
    if need > row:
        raise PlanError(
            f"{need - row} of {need} elements a rank are of frozen parameters, which deepspeed before 0.9.1 "
            "does not save at stage 3, and before 0.4.3 does not tell from the others",
            where=rank.optim_paths[0],
            hint=_OLD,
        )
    if count > 1:
        raise PlanError(
            "deepspeed before 0.4.3 lists the parameters in the module's order, but the masters lie in that "
            f"of {count} optimizer groups, and nothing in these files says which parameter is of which group",
            where=rank.optim_paths[0],
            hint=_OLD,
        )


def zero3_frozen(rank: ModelRank, graph: GraphBuilder) -> dict[str, tuple[Master, FileTensor]]:
    """Locate stage 3's frozen parameters: a slice of each on every rank, in the module's dtype."""
    frozen: dict[str, tuple[Master, FileTensor]] = {}
    shapes = rank.frozen_shapes() or {}
    for stored_as in as_dict(rank.head.get("frozen_param_shapes")):
        name = rank.saved(stored_as)
        shape = shapes[name]
        parts: list[FileTensor] = []
        for r, fragments in enumerate(rank.fragments):
            part = fragments.get(stored_as)
            if not isinstance(part, FileTensor):
                raise PlanError(
                    f"rank {r} holds no slice of the frozen parameter {name}", where=rank.head_path
                )
            parts.append(part)
        world = len(parts)
        width = -(-prod(shape) // world)
        if any(p.numel != width for p in parts):
            found = [p.numel for p in parts]
            raise PlanError(
                f"slices of the frozen {name} {list(shape)} hold {found} elements, not {width} each",
                where=rank.head_path,
            )
        key = f"mp_rank_{rank.mp:02d}/frozen/{name}"
        graph.store(key, concatenated(parts, (world, width)))
        frozen[name] = (_cut_over_ranks(graph, key, shape, world, width, 0), parts[0])
    return frozen


def _cut_over_ranks(graph: GraphBuilder, key: str, shape: Shape, world: int, row: int, column: int) -> Master:
    """Locate a parameter whose parts are the columns from ``column`` on of a matrix ``[world, row]``."""
    pairs, drops = partitioned("", prod(shape), world, key, row, column)
    graph.left_only += drops
    return Master(shape, tuple(p.left for p in pairs))
