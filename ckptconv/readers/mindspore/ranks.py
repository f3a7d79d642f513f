"""Read checkpoints with a file a rank, cut as strategy files say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ckptconv.containers.mindspore.mindspore import open_mindspore
from ckptconv.containers.stored import Stored
from ckptconv.dialects.mindformers.entries import beside_weights, weight_of
from ckptconv.dialects.mindformers.strategy import Strategy, find_strategies, read_strategies
from ckptconv.errors import PlanError, UsageError
from ckptconv.parallel.devices import Cut, cut
from ckptconv.plans.checkpoint import Note
from ckptconv.readers.mindspore.assemble import Holder, add_tensor
from ckptconv.readers.mindspore.content import Content, add_whole
from ckptconv.readers.mindspore.find import Found
from ckptconv.readers.mindspore.options import MindSporeOptions

__all__ = ["no_strategy", "read_ranks"]


def read_ranks(found: Found, options: MindSporeOptions, content: Content) -> None:
    """Add the tensors of all ranks.

    Raises:
        PlanError: if a slice, a rank or a layout is missing, or they contradict each other.
        UsageError: if no strategy file is there.
    """
    paths = find_strategies(found.data, options.strategy)
    holders: dict[str, list[tuple[int, Stored]]] = {}
    for rank, path in zip(found.ranks, found.files, strict=True):
        for name, stored in content.weights(open_mindspore(path)).items():
            holders.setdefault(name, []).append((rank, stored))
    content.layout["ranks"] = len(found.ranks)
    if not paths:
        if found.ranks != (0,) or content.deduplicated:
            raise no_strategy(found)
        content.notes.append(Note("guess", "one rank and no strategy file: its tensors are taken as whole"))
        add_whole(content, found.files[0], {name: held[0][1] for name, held in holders.items()})
        return
    strategy = _strategy(found, paths, content)
    unknown = []
    for name, held in holders.items():
        if (weight := _cut_like(name, held, holders, strategy)) is not None:
            add_tensor(content.graph, name, _groups(weight, held, strategy), str(found.data))
            continue
        if not any(name in strategy.stages[strategy.stage(rank)] for rank, _ in held):
            unknown.append(name)
            _check_everywhere(name, held, strategy, found)
        add_tensor(content.graph, name, _groups(name, held, strategy), str(found.data))
    if unknown:
        text = f"{len(unknown)} tensors are in no strategy file, taken as whole on every rank: {unknown[0]}"
        content.notes.append(Note("guess", text))
    expected = {name for names in strategy.stages.values() for name in names if beside_weights(name) is None}
    if lost := sorted(expected - set(holders)):
        text = f"{len(lost)} parameters of the strategy are in no rank's file: {lost[0]}"
        content.notes.append(Note("warning", text))


def _cut_like(
    name: str,
    held: Sequence[tuple[int, Stored]],
    holders: Mapping[str, Sequence[tuple[int, Stored]]],
    strategy: Strategy,
) -> str | None:
    """Return the weight an optimizer state is cut like, if no strategy has a layout for the state itself."""
    weight = weight_of(name)
    if weight is None or weight not in holders or any(name in names for names in strategy.stages.values()):
        return None
    theirs = {rank: stored.shape for rank, stored in holders[weight]}
    return weight if all(theirs.get(rank) == stored.shape for rank, stored in held) else None


def _strategy(found: Found, paths: Sequence[Path], content: Content) -> Strategy:
    """Read the strategy files and check that they and the ranks are of the same pipeline stages."""
    strategy = read_strategies(paths)
    for path in paths:
        content.graph.touch(path)
    stages = {strategy.stage(rank) for rank in found.ranks}
    content.layout |= {"pipeline stages": len(strategy.stages), "ranks per stage": strategy.ranks}
    where = paths[0] if len(paths) == 1 else paths[0].parent
    if lack := sorted(stages - set(strategy.stages)):
        raise PlanError(
            f"the strategy says nothing of pipeline stage {lack[0]} ({strategy.ranks} ranks a stage)",
            where=where,
            hint="give --strategy with the folder of all ranks' strategy files, or the merged one",
        )
    if gone := sorted(set(strategy.stages) - stages):
        first = gone[0] * strategy.ranks
        raise PlanError(
            f"pipeline stage {gone[0]} has no rank here (ranks {first} to {first + strategy.ranks - 1})",
            where=found.data,
            hint="copy the folders of all ranks (rank_0, rank_1, ...) of this save",
        )
    text = f"cut as {len(paths)} strategy file{'s' * (len(paths) > 1)} in {where} say"
    content.notes.append(Note("info", text))
    return strategy


def _groups(
    name: str, held: Iterable[tuple[int, Stored]], strategy: Strategy
) -> list[tuple[Cut, list[Holder]]]:
    """Sort the ranks that hold a tensor by pipeline stage."""
    by_stage: dict[int, list[Holder]] = {}
    for rank, stored in held:
        by_stage.setdefault(strategy.stage(rank), []).append(Holder(rank, rank % strategy.ranks, stored))
    groups = []
    for stage, holders in sorted(by_stage.items()):
        layout = strategy.stages[stage].get(name)
        ndim = len(holders[0].stored.shape)
        whole = Cut(((),) * ndim)
        if any(len(h.stored.shape) != ndim for h in holders):
            raise PlanError(f"{name} has unlike numbers of axes on the ranks of stage {stage}")
        groups.append((whole if layout is None else cut(layout, ndim, name), holders))
    return groups


def _check_everywhere(
    name: str, held: Sequence[tuple[int, Stored]], strategy: Strategy, found: Found
) -> None:
    """Refuse a tensor without a layout that only some ranks of a stage hold: it may be a slice."""
    counts = Counter(strategy.stage(rank) for rank, _ in held)
    ranks = Counter(strategy.stage(rank) for rank in found.ranks)
    if held[0][1].numel > 1 and any(n < ranks[stage] for stage, n in counts.items()):
        raise PlanError(
            f"{name} is in no strategy file, and only on {len(held)} of {len(found.ranks)} ranks",
            where=found.data,
            hint="give the strategy files of this run with --strategy",
        )


def no_strategy(found: Found) -> UsageError:
    """Return the error for slices without a strategy file."""
    return UsageError(
        f"no strategy file says how {max(len(found.ranks), 1)} ranks cut the tensors",
        where=found.data,
        hint="give --strategy with the run's strategy folder or merged file; if every rank holds the whole "
        "model, name the file of one",
    )
