"""Locate the fp32 masters of ZeRO stages 1 and 2, where each optimizer group is one flat run cut over ranks.

Layouts: deepspeed 0.19.8, ``runtime/zero/stage_1_and_2.py`` and ``runtime/bf16_optimizer.py``; 0.3.16,
``runtime/zero/stage1.py``. Partitions are stored without padding, so the last ranks may be short or empty;
they are joined in rank order and cut by the shapes, never by arithmetic on equal parts.

What lies in a group is said by ``param_shapes``. It cannot be trusted in every release (`releases`), and
files of mixtures of experts name none before June 2026; then the slices the ranks list say it, or the values
do (`values`), which prove it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import Stored, concatenated
from ckptconv.containers.torch.inert import Record
from ckptconv.containers.torch.torchtensors import refuse_odd
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.readers.deepspeed.experts import Experts, in_order
from ckptconv.readers.deepspeed.masters import Master, Shape
from ckptconv.readers.deepspeed.releases import has_wrong_slices, orders_by_module
from ckptconv.readers.deepspeed.states import ModelRank, as_dict
from ckptconv.readers.deepspeed.values import Placed, Wanted, find_by_values, is_proven
from ckptconv.readers.sample import Sampler
from ckptconv.relations import Box, Drop

__all__ = ["Order", "flat_masters"]

Order = Literal["told", "proven", "found"]
"""How it is known which master is whose: files say it; they do, and values prove it; or these alone."""

_MODEL = "take the 16-bit weights (--weights model)"
_OTHERS = "the partitions do not belong to these model states"


@dataclass(frozen=True, slots=True)
class _Run:
    """One optimizer group as the ranks that share it hold it, joined.

    Attributes:
        group: The optimizer group.
        ep_rank: Of ``ep`` expert-parallel ranks, the one whose experts it holds.
        members: The data-parallel ranks that share it, in order.
        stored: The masters.
        padding: The most elements after the last parameter.
    """

    group: int
    ep_rank: int
    ep: int
    members: tuple[int, ...]
    stored: Stored
    padding: int


def flat_masters(
    rank: ModelRank,
    graph: GraphBuilder,
    module: Mapping[str, FileTensor],
    others: frozenset[str],
    sampler: Sampler,
) -> tuple[dict[str, Master], Order]:
    """Locate the masters.

    Args:
        rank: The model-parallel rank.
        graph: Receives the stored groups and the padding they end in.
        module: The 16-bit weights by name, experts and a pipeline's layers among them.
        others: Names among them that have no master of their own: buffers, and further names of shared ones.
        sampler: Reads the elements that decide where nothing else does.

    Returns:
        The masters, and how it is known which is whose.

    Raises:
        PlanError: if partitions are missing, too short or too long for the parameters, or if nothing says
            which parameters they hold.
    """
    runs = list(_runs(rank))
    experts = Experts([*module, *rank.param_names()])
    placed, order = _placed(rank, runs, module, others, experts, sampler)
    masters: dict[str, Master] = {}
    for run, parts in zip(runs, placed, strict=True):
        key = f"mp_rank_{rank.mp:02d}/fp32_group_{run.group}" + (f"/ep_{run.ep_rank}" if run.ep > 1 else "")
        graph.store(key, run.stored)
        masters |= _cut(rank, run, key, parts, graph)
    return masters, order


def _cut(
    rank: ModelRank, run: _Run, key: str, parts: Sequence[Placed], graph: GraphBuilder
) -> Iterator[tuple[str, Master]]:
    """Yield the parameters of a run, and drop what lies between and after them."""
    used, total = 0, run.stored.numel
    for name, shape, at in sorted(parts, key=lambda x: x[2]):
        if at > used:
            graph.left_only.append(Drop(Box.interval(key, used, at), "ZeRO alignment padding"))
        n = prod(shape)
        if at + n > total:
            raise PlanError(
                f"group {run.group} holds {total} elements, but {name} {list(shape)} ends at {at + n}",
                where=rank.optim_paths[run.members[0]],
                hint=_OTHERS,
            )
        yield name, Master(shape, (Box.interval(key, at, at + n),) if n else ())
        used = at + n
    if total - used > run.padding:
        raise PlanError(
            f"group {run.group} holds {total} elements, but its parameters need only {used}",
            where=rank.optim_paths[run.members[0]],
            hint=_OTHERS,
        )
    if total > used:
        graph.left_only.append(Drop(Box.interval(key, used, total), "ZeRO padding"))


# The runs


def _runs(rank: ModelRank) -> Iterator[_Run]:
    """Join the partitions of every group."""
    first = rank.optim[0]
    if "single_partition_of_fp32_groups" in first:
        groups = len(first["single_partition_of_fp32_groups"])
        join: Callable[[int, Sequence[int]], list[FileTensor]] = partial(_partitions, rank)
    elif "local_sub_partitions_of_fp32_groups" in first:
        groups = len(first["local_sub_partitions_of_fp32_groups"])
        join = partial(_sub_partitions, rank)
    else:
        raise FormatError(
            "no 'single_partition_of_fp32_groups' in the optimizer states", where=rank.optim_paths[0]
        )
    for g in range(groups):
        sharing = _sharing_ranks(rank, g)
        for e, members in enumerate(sharing):
            parts = join(g, members)
            stored = concatenated(parts, (sum(p.numel for p in parts),))
            # Each rank stores its part without padding; BF16_Optimizer stores the padding as well, as stage
            # 1 of 0.3 does without elastic_checkpoint, up to its sub-partition of every rank.
            padding = 2 * len(members) - 1 + max(_alignment_paddings(rank, g), default=0)
            if "local_sub_partitions_of_fp32_groups" in first and "zero_stage" not in first:
                padding = max(padding, len(members) * parts[0].numel - 1)
            yield _Run(g, e, len(sharing), tuple(members), stored, padding)


def _partitions(rank: ModelRank, g: int, members: Sequence[int]) -> list[FileTensor]:
    """Return a group's partition of every rank."""
    parts: list[FileTensor] = []
    for r in members:
        groups = rank.optim[r]["single_partition_of_fp32_groups"]
        refuse_odd(f"fp32 group {g}", groups[g] if g < len(groups) else None, rank.optim_paths[r])
        if g >= len(groups) or not isinstance(groups[g], FileTensor):
            raise FormatError(f"fp32 group {g} is missing", where=rank.optim_paths[r])
        parts.append(groups[g])
    return parts


def _sub_partitions(rank: ModelRank, g: int, members: Sequence[int]) -> list[FileTensor]:
    """Return a group's sub-partitions as stage 1 before 0.4 interleaves them: interval by interval."""
    found: list[Sequence[Any]] = []
    for r in members:
        groups = rank.optim[r].get("local_sub_partitions_of_fp32_groups") or []
        parts = groups[g] if g < len(groups) else None
        if not isinstance(parts, list) or not parts or not all(isinstance(p, FileTensor) for p in parts):
            raise FormatError(f"fp32 group {g} is missing", where=rank.optim_paths[r])
        if found and len(parts) != len(found[0]):
            raise PlanError(
                f"fp32 group {g} has {len(parts)} sub-partitions here and {len(found[0])} on rank 0",
                where=rank.optim_paths[r],
                hint="the files are of different saves; copy one whole save",
            )
        found.append(parts)
    return [parts[i] for i in range(len(found[0])) for parts in found]


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


# What lies in them


def _placed(
    rank: ModelRank,
    runs: Sequence[_Run],
    module: Mapping[str, FileTensor],
    others: frozenset[str],
    experts: Experts,
    sampler: Sampler,
) -> tuple[list[list[Placed]], Order]:
    """Say which parameters lie where in each run, and how that is known."""
    shapes = rank.param_shapes()
    if shapes is None and _has_slices(rank, runs):
        return [_by_slices(rank, run, module, experts) for run in runs], "told"
    if shapes is not None and not orders_by_module(rank):
        by_group = _split_groups(shapes, runs)
        return [_by_shapes(rank, run, by_group[run.group], experts) for run in runs], "told"
    listed = None if shapes is None else {k: s for group in shapes for k, s in group.items()}
    wanted = _wanted(listed, module, others)
    if shapes is not None:
        proven = _as_listed(rank, shapes, runs, wanted, experts, sampler)
        if proven is not None:
            return proven, "proven"
    left = dict(wanted)
    out: list[list[Placed]] = []
    for run in runs:
        fitting = [
            w for n, w in left.items() if run.ep == 1 or experts.of_rank(n, run.ep) in (None, run.ep_rank)
        ]
        found = None
        if listed is not None and sum(w.numel for w in fitting) == run.stored.numel:
            whole = _one_by_one(_dealt([w.name for w in fitting], run), left)
            found = whole if is_proven(run.stored, whole, left, sampler, padding=0) else None
        found = found or find_by_values(run.stored, fitting, sampler, padding=run.padding)
        if found is None:
            raise _nameless(rank, run, listed is not None)
        for name, _, _ in found:
            del left[name]
        out.append(found)
    return out, "found"


def _nameless(rank: ModelRank, run: _Run, listed: bool) -> PlanError:
    why = (
        "deepspeed before 0.4.4 lists the parameters in another order than that of the partitions"
        if listed
        else "these files do not say which parameters the partitions hold"
    )
    return PlanError(
        f"{why}, and the 16-bit weights do not tell which masters of group {run.group} are whose: "
        "these round to none of them, or to several alike",
        where=rank.optim_paths[run.members[0]],
        hint=f"if optimizer and model states are of different saves, copy one whole save; or {_MODEL}",
    )


def _wanted(
    listed: Mapping[str, Shape] | None, module: Mapping[str, FileTensor], others: frozenset[str]
) -> dict[str, Wanted]:
    """Return what may be in the partitions, with the 16-bit tensors that prove it, in the module's order."""
    if listed is None:
        names = in_order(n for n, t in module.items() if n not in others and t.dtype.kind == "float")
        return {n: Wanted(n, module[n].shape, (module[n],)) for n in names}
    out: dict[str, Wanted] = {}
    for name, shape in listed.items():
        tensors = [module[name]] if name in module else _layers_of(name, module)
        out[name] = Wanted(name, shape, tuple(t for t in tensors if t.shape == shape))
    return out


def _layers_of(name: str, module: Mapping[str, FileTensor]) -> list[FileTensor]:
    """Return what may be a pipeline's tied parameter, which layer files hold under the layer's number."""
    if not name.startswith("tied_modules."):
        return []
    suffix = name.split(".", 2)[2]
    return [t for n, t in module.items() if n.partition(".")[2] == suffix]


def _as_listed(
    rank: ModelRank,
    shapes: list[dict[str, Shape]],
    runs: Sequence[_Run],
    wanted: Mapping[str, Wanted],
    experts: Experts,
    sampler: Sampler,
) -> list[list[Placed]] | None:
    """Take the parameters as they are listed, or as 0.4.0 to 0.4.3 dealt them out, if that is proven."""
    try:
        by_group = _split_groups(shapes, runs)
    except PlanError:
        return None
    for dealt in (False, True):
        out: list[list[Placed]] = []
        for run in runs:
            group = by_group[run.group]
            if dealt:
                group = {name: group[name] for name in _dealt(list(group), run)}
            out.append(_by_shapes(rank, run, group, experts))
        if all(
            is_proven(run.stored, parts, wanted, sampler, padding=run.padding)
            for run, parts in zip(runs, out, strict=True)
        ):
            return out
    return None


def _dealt(names: Sequence[str], run: _Run) -> list[str]:
    """Deal parameters out to the ranks in turn (0.4.0, ``stage2.py``, ``_round_robin_reorder``)."""
    ranks = len(run.members)
    return [name for r in range(ranks) for name in names[r::ranks]]


def _one_by_one(names: Sequence[str], wanted: Mapping[str, Wanted]) -> list[Placed]:
    """Place parameters one after the other."""
    out: list[Placed] = []
    at = 0
    for name in names:
        out.append((name, wanted[name].shape, at))
        at += wanted[name].numel
    return out


def _split_groups(shapes: list[dict[str, Shape]], runs: Sequence[_Run]) -> list[dict[str, Shape]]:
    """Return the shapes by group; one dict over all groups (before 0.5.4) is cut where a group is full."""
    firsts = [run for run in runs if run.ep_rank == 0]
    if len(shapes) == len(firsts):
        return shapes
    if len(shapes) != 1:
        raise PlanError(
            f"the model states name {len(shapes)} parameter groups, the optimizer holds {len(firsts)}"
        )
    out: list[dict[str, Shape]] = []
    names = list(shapes[0].items())
    for run in firsts:
        room = run.stored.numel
        group: dict[str, Shape] = {}
        while names and prod(names[0][1]) <= room:
            name, shape = names.pop(0)
            group[name] = shape
            room -= prod(shape)
        out.append(group)
    if names:
        raise PlanError(f"the partitions end before parameter {names[0][0]}")
    return out


def _by_shapes(rank: ModelRank, run: _Run, shapes: dict[str, Shape], experts: Experts) -> list[Placed]:
    """Place a group's parameters one after the other, with the alignment 0.19.7 introduced."""
    after = _alignment_paddings(rank, run.group)
    if after and len(after) != len(shapes):
        raise PlanError(
            f"group {run.group} has {len(shapes)} parameters but {len(after)} alignment paddings",
            where=rank.optim_paths[0],
            hint=_OTHERS,
        )
    out: list[Placed] = []
    at = 0
    for i, (name, shape) in enumerate(shapes.items()):
        out.append((experts.global_name(name, run.ep_rank, run.ep), shape, at))
        at += prod(shape) + (after[i] if after else 0)
    return out


def _alignment_paddings(rank: ModelRank, g: int) -> list[int]:
    """Elements of padding after each parameter of group ``g`` (0.19.7 with ``parameter_alignment``)."""
    paddings = rank.optim[0].get("param_alignment_paddings")
    if not isinstance(paddings, list) or g >= len(paddings):
        return []
    return [int(p) for p in paddings[g] or []]


# Slices


def _has_slices(rank: ModelRank, runs: Sequence[_Run]) -> bool:
    """Whether the ranks list slices that can be trusted.

    They ignore the order of ``round_robin_gradients``, and those of experts are wrong before 0.14.5.
    """
    config = as_dict(as_dict(rank.head.get("ds_config")).get("zero_optimization"))
    if config.get("round_robin_gradients") or (has_wrong_slices(rank) and any(run.ep > 1 for run in runs)):
        return False
    return all(isinstance(state.get("param_slice_mappings"), list) for state in rank.optim)


def _by_slices(
    rank: ModelRank, run: _Run, module: Mapping[str, FileTensor], experts: Experts
) -> list[Placed]:
    """Place a group's parameters by the slices each rank lists.

    MoE files before June 2026 (02663d6e5) name no shapes.
    """
    found: dict[str, tuple[int, int]] = {}
    base = 0
    for r in run.members:
        state = rank.optim[r]
        for name, address in as_dict(state["param_slice_mappings"][run.group]).items():
            start, count = _fragment(address)
            known = found.get(name)
            if known is None:
                found[name] = (base + start, count)
            elif known[0] + known[1] != base + start:
                raise PlanError(f"the slices of {name} do not follow one another", where=rank.optim_paths[r])
            else:
                found[name] = (known[0], known[1] + count)
        base += state["single_partition_of_fp32_groups"][run.group].numel
    out: list[Placed] = []
    for local, (at, count) in found.items():
        name = experts.global_name(rank.saved(local), run.ep_rank, run.ep)
        shape = module[name].shape if name in module else _tied_shape(name, count, module)
        if shape is None or prod(shape) != count:
            raise PlanError(
                f"{name} has {count} elements in the partitions and shape {shape} in the 16-bit weights",
                where=rank.head_path,
            )
        out.append((name, shape, at))
    return out


def _tied_shape(name: str, count: int, module: Mapping[str, FileTensor]) -> Shape | None:
    """Return the shape of a pipeline's tied parameter."""
    found = {t.shape for t in _layers_of(name, module) if t.numel == count}
    return found.pop() if len(found) == 1 else None


def _fragment(address: object) -> tuple[int, int]:
    """Read ``deepspeed.utils.tensor_fragment.fragment_address``: start and length in a rank's partition."""
    if isinstance(address, Record):
        start, count = address.get("start"), address.get("numel")
        if isinstance(start, int) and isinstance(count, int):
            return start, count
    raise FormatError(f"not a fragment address: {address!r}")
