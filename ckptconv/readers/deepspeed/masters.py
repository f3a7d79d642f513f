"""Locate the fp32 master of every trainable parameter in the flat ZeRO partitions.

Layouts: deepspeed 0.19.8, ``runtime/zero/stage_1_and_2.py`` and ``runtime/bf16_optimizer.py`` (flat groups
cut over ranks), ``stage3.py`` and ``partition_parameters.py`` (each cut over ranks).
Partitions of stage 1 and 2 are stored without padding, so the last ranks may be short or empty; they are
joined in rank order and cut by the shapes, never by arithmetic on equal parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import Stored, concatenated
from ckptconv.containers.torch.inert import Record
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.readers.deepspeed.states import ModelRank, as_dict, value
from ckptconv.relations import Box, Drop, Pair, partitioned

__all__ = ["Master", "expert_name", "flat_masters", "zero3_frozen", "zero3_masters"]

Shape = tuple[int, ...]
_EXPERT = re.compile(r"(deepspeed_experts\.)(\d+)")


@dataclass(frozen=True, slots=True)
class Master:
    """Say where a parameter's elements lie: boxes of stored tensors that fill it from front to back."""

    shape: Shape
    boxes: tuple[Box, ...]

    def pairs(self, name: str, *, copy: bool = False) -> list[Pair]:
        """Pair the boxes with the flat elements of the tensor ``name``."""
        pairs, at = [], 0
        for box in self.boxes:
            n = box.numel
            pairs.append(Pair(box, Box.interval(name, at, at + n), left_copy=copy))
            at += n
        return pairs


def flat_masters(rank: ModelRank, graph: GraphBuilder, shapes_of: Mapping[str, Shape]) -> dict[str, Master]:
    """Locate masters of stage 1 and 2: each group is one flat run, cut over the ranks that share it.

    Args:
        rank: The model-parallel rank.
        graph: Receives the stored groups and the padding they end in.
        shapes_of: Shapes by name from the 16-bit weights, for files that name no shapes.

    Raises:
        PlanError: if partitions are missing, too short or too long for the parameters.
    """
    first = rank.optim[0]
    if "single_partition_of_fp32_groups" not in first:
        old = "local_sub_partitions_of_fp32_groups" in first
        raise FormatError(
            "the ZeRO stage 1 optimizer of deepspeed before 0.4 interleaves its partitions"
            if old
            else "no 'single_partition_of_fp32_groups' in the optimizer states",
            where=rank.optim_paths[0],
            hint="resume once with a newer deepspeed and save again, or take --weights model",
        )
    partitions = [s["single_partition_of_fp32_groups"] for s in rank.optim]
    shapes = rank.param_shapes()
    masters: dict[str, Master] = {}
    groups = len(partitions[0])
    by_group = None if shapes is None else _split_groups(shapes, partitions, groups)
    for g in range(groups):
        for ep_rank, members in enumerate(_sharing_ranks(rank, g)):
            flat = _join(rank, partitions, g, members)
            key = f"mp_rank_{rank.mp:02d}/fp32_group_{g}" + (
                f"/ep_{ep_rank}" if len(members) < len(rank.optim) else ""
            )
            if by_group is None:
                located = _by_slices(rank, g, members, shapes_of)
            else:
                located = _by_shapes(rank, g, by_group[g])
            local = _local_experts(name for name, _, _ in located)
            graph.store(key, flat)
            used = 0
            for name, shape, at in sorted(located, key=lambda x: x[2]):
                if at > used:
                    graph.left_only.append(Drop(Box.interval(key, used, at), "ZeRO alignment padding"))
                n = prod(shape)
                if at + n > flat.numel:
                    raise PlanError(
                        f"group {g} holds {flat.numel} elements, but {name} {list(shape)} ends at {at + n}",
                        where=rank.optim_paths[members[0]],
                        hint="the partitions do not belong to these model states",
                    )
                name = expert_name(name, ep_rank, local)
                masters[name] = Master(shape, (Box.interval(key, at, at + n),) if n else ())
                used = at + n
            # Each rank stores its part without the padding; BF16_Optimizer stores the padding as well.
            if flat.numel - used >= 2 * len(members) + max(_alignment_paddings(rank, g), default=0):
                raise PlanError(
                    f"group {g} holds {flat.numel} elements, but its parameters need only {used}",
                    where=rank.optim_paths[members[0]],
                    hint="the partitions do not belong to these model states",
                )
            if flat.numel > used:
                graph.left_only.append(Drop(Box.interval(key, used, flat.numel), "ZeRO padding"))
    return masters


def _join(rank: ModelRank, partitions: Sequence[Any], g: int, members: Sequence[int]) -> Stored:
    parts: list[FileTensor] = []
    for r in members:
        if g >= len(partitions[r]) or not isinstance(partitions[r][g], FileTensor):
            raise FormatError(f"fp32 group {g} is missing", where=rank.optim_paths[r])
        part = partitions[r][g]
        parts.append(part)
    return concatenated(parts, (sum(p.numel for p in parts),))


def _sharing_ranks(rank: ModelRank, g: int) -> list[list[int]]:
    """Data-parallel ranks that share group ``g``: all, or for experts one list per expert-parallel rank.

    Members of an expert group lie the expert-parallel size apart (``get_ep_ranks`` in stage_1_and_2.py).
    """
    world = len(rank.optim)
    count = rank.optim[0].get("partition_count", world)
    count = count[g] if isinstance(count, list) else count
    if not isinstance(count, int) or count < 1 or world % count:
        raise PlanError(
            f"group {g} is cut into {count} partitions, but {world} optimizer files were found",
            where=rank.optim_paths[0],
            hint="copy the *_optim_states.pt files of every rank",
        )
    step = world // count
    return [list(range(e, world, step)) for e in range(step)]


def _split_groups(
    shapes: list[dict[str, Shape]], partitions: Sequence[Any], groups: int
) -> list[dict[str, Shape]]:
    """Return the shapes by group; one dict over all groups (before 0.5.4) is cut where a group is full."""
    if len(shapes) == groups:
        return shapes
    if len(shapes) != 1:
        raise PlanError(f"the model states name {len(shapes)} parameter groups, the optimizer holds {groups}")
    out: list[dict[str, Shape]] = []
    names = list(shapes[0].items())
    for g in range(groups):
        room = sum(p[g].numel for p in partitions)
        group: dict[str, Shape] = {}
        while names and prod(names[0][1]) <= room:
            name, shape = names.pop(0)
            group[name] = shape
            room -= prod(shape)
        out.append(group)
    if names:
        raise PlanError(f"the partitions end before parameter {names[0][0]}")
    return out


def _by_shapes(rank: ModelRank, g: int, shapes: dict[str, Shape]) -> list[tuple[str, Shape, int]]:
    """Place a group's parameters one after the other, with the alignment 0.19.7 introduced."""
    after = _alignment_paddings(rank, g)
    if after and len(after) != len(shapes):
        raise PlanError(
            f"group {g} has {len(shapes)} parameters but {len(after)} alignment paddings",
            where=rank.optim_paths[0],
            hint="the partitions do not belong to these model states",
        )
    out, at = [], 0
    for i, (name, shape) in enumerate(shapes.items()):
        out.append((name, shape, at))
        at += prod(shape) + (after[i] if after else 0)
    return out


def _alignment_paddings(rank: ModelRank, g: int) -> list[int]:
    """Elements of padding after each parameter of group ``g`` (0.19.7 with ``parameter_alignment``)."""
    paddings = rank.optim[0].get("param_alignment_paddings")
    if not isinstance(paddings, list) or g >= len(paddings):
        return []
    return [int(p) for p in paddings[g] or []]


def _by_slices(
    rank: ModelRank, g: int, members: Sequence[int], shapes_of: Mapping[str, Shape]
) -> list[tuple[str, Shape, int]]:
    """Place a group's parameters by the slices each rank lists.

    MoE files before June 2026 (02663d6e5) name no shapes. The slices ignore round-robin order, so they are
    only good without it.
    """
    config = as_dict(rank.head.get("ds_config"))
    if as_dict(config.get("zero_optimization")).get("round_robin_gradients"):
        raise PlanError(
            "round_robin_gradients shuffles the partitions, and these files do not say how",
            where=rank.head_path,
            hint="take the 16-bit weights with --weights model",
        )
    found: dict[str, tuple[int, int]] = {}
    base = 0
    for r in members:
        state = rank.optim[r]
        mappings = state.get("param_slice_mappings")
        if not isinstance(mappings, list):
            raise PlanError(
                "neither 'param_shapes' nor 'param_slice_mappings' says which parameters the partitions hold",
                where=rank.optim_paths[r],
                hint="take the 16-bit weights with --weights model",
            )
        for name, address in as_dict(mappings[g]).items():
            start, count = _fragment(address)
            known = found.get(name)
            if known is None:
                found[name] = (base + start, count)
            elif known[0] + known[1] != base + start:
                raise PlanError(f"the slices of {name} do not follow one another", where=rank.optim_paths[r])
            else:
                found[name] = (known[0], known[1] + count)
        base += state["single_partition_of_fp32_groups"][g].numel
    local = _local_experts(found)
    out = []
    for name, (at, count) in found.items():
        full = expert_name(name, members[0], local)  # members are e, e + ep, ...: the first is the ep rank
        shape = shapes_of.get(full) or _tied_shape(full, count, shapes_of)
        if shape is None or prod(shape) != count:
            raise PlanError(
                f"{full} has {count} elements in the partitions and shape {shape} in the 16-bit weights",
                where=rank.head_path,
            )
        out.append((name, shape, at))
    return out


def _tied_shape(name: str, count: int, shapes_of: Mapping[str, Shape]) -> Shape | None:
    """Return the shape of a pipeline's tied parameter, which layer files hold under the layer's number."""
    if not name.startswith("tied_modules."):
        return None
    suffix = name.split(".", 2)[2]
    found = {s for n, s in shapes_of.items() if n.partition(".")[2] == suffix and prod(s) == count}
    return found.pop() if len(found) == 1 else None


def _fragment(address: object) -> tuple[int, int]:
    """Read ``deepspeed.utils.tensor_fragment.fragment_address``: start and length in a rank's partition."""
    if isinstance(address, Record):
        start, count = address.get("start"), address.get("numel")
        if isinstance(start, int) and isinstance(count, int):
            return start, count
    raise FormatError(f"not a fragment address: {address!r}")


def _local_experts(names: Iterable[str]) -> int:
    """Experts per rank, from local names; 0 in a group without experts."""
    return max((int(m[2]) + 1 for n in names if (m := _EXPERT.search(n))), default=0)


def expert_name(name: str, ep_rank: int, local: int) -> str:
    """Give an expert its global number: DeepSpeed's parameter names count from 0 on every rank."""
    if not local:
        return name
    return _EXPERT.sub(lambda m: m[1] + str(int(m[2]) + ep_rank * local), name)


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


def zero3_frozen(rank: ModelRank, graph: GraphBuilder) -> dict[str, tuple[Master, FileTensor]]:
    """Locate stage 3's frozen parameters: a slice of each on every rank, in the module's dtype."""
    shapes = {str(k): tuple(v) for k, v in as_dict(rank.head.get("frozen_param_shapes")).items()}
    frozen: dict[str, tuple[Master, FileTensor]] = {}
    for name, shape in shapes.items():
        parts: list[FileTensor] = []
        for r, fragments in enumerate(rank.fragments):
            part = fragments.get(name)
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
