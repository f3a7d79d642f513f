"""Locate the fp32 masters of ZeRO stages 1 and 2 in the runs that their partitions make (`runs`).

What lies in a run is said by ``param_shapes``, in the order of the run. It cannot be trusted in every release
(`releases`), and files of mixtures of experts name none before June 2026; then the slices the ranks list say
it (`slices`), or the values do (`values`), which prove it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Literal

from ckptconv.containers.base import FileTensor
from ckptconv.errors import PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.readers.deepspeed.experts import Experts, in_order
from ckptconv.readers.deepspeed.masters import Master, Shape
from ckptconv.readers.deepspeed.releases import orders_by_module
from ckptconv.readers.deepspeed.runs import Run, alignment_paddings, runs_of
from ckptconv.readers.deepspeed.slices import by_slices, has_slices, layers_of
from ckptconv.readers.deepspeed.states import ModelRank
from ckptconv.readers.deepspeed.values import Placed, Wanted, find_by_values, is_proven
from ckptconv.readers.sample import Sampler
from ckptconv.relations import Box, Drop

__all__ = ["Order", "flat_masters"]

Order = Literal["told", "proven", "found"]
"""How it is known which master is whose: files say it; they do, and values prove it; or these alone."""

_MODEL = "take the 16-bit weights (--weights model)"
_OTHERS = "the partitions do not belong to these model states"


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
    runs = list(runs_of(rank))
    experts = Experts([*module, *rank.param_names()])
    placed, order = _placed(rank, runs, module, others, experts, sampler)
    masters: dict[str, Master] = {}
    for run, parts in zip(runs, placed, strict=True):
        key = f"mp_rank_{rank.mp:02d}/fp32_group_{run.group}" + (f"/ep_{run.ep_rank}" if run.ep > 1 else "")
        graph.store(key, run.stored)
        masters |= _cut(rank, run, key, parts, graph)
    return masters, order


def _cut(
    rank: ModelRank, run: Run, key: str, parts: Sequence[Placed], graph: GraphBuilder
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


def _placed(
    rank: ModelRank,
    runs: Sequence[Run],
    module: Mapping[str, FileTensor],
    others: frozenset[str],
    experts: Experts,
    sampler: Sampler,
) -> tuple[list[list[Placed]], Order]:
    """Say which parameters lie where in each run, and how that is known."""
    shapes = rank.param_shapes()
    if shapes is None and has_slices(rank, runs):
        return [by_slices(rank, run, module, experts) for run in runs], "told"
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


def _nameless(rank: ModelRank, run: Run, listed: bool) -> PlanError:
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
        tensors = [module[name]] if name in module else layers_of(name, module)
        out[name] = Wanted(name, shape, tuple(t for t in tensors if t.shape == shape))
    return out


def _as_listed(
    rank: ModelRank,
    shapes: list[dict[str, Shape]],
    runs: Sequence[Run],
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


def _dealt(names: Sequence[str], run: Run) -> list[str]:
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


def _split_groups(shapes: list[dict[str, Shape]], runs: Sequence[Run]) -> list[dict[str, Shape]]:
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


def _by_shapes(rank: ModelRank, run: Run, shapes: dict[str, Shape], experts: Experts) -> list[Placed]:
    """Place a group's parameters one after the other, with the alignment 0.19.7 introduced."""
    after = alignment_paddings(rank, run.group)
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
