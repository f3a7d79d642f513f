"""Join the flat partitions of ZeRO stages 1 and 2: each optimizer group is one run, cut over ranks.

Layouts: deepspeed 0.19.8, ``runtime/zero/stage_1_and_2.py`` and ``runtime/bf16_optimizer.py``; 0.3.16,
``runtime/zero/stage1.py``. Partitions are stored without padding, so the last ranks may be short or empty;
they are joined in rank order, never by arithmetic on equal parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import Stored, concatenated
from ckptconv.containers.torch.torchtensors import refuse_odd
from ckptconv.errors import FormatError, PlanError
from ckptconv.readers.deepspeed.states import ModelRank
from ckptconv.records import dataclass

__all__ = ["Run", "alignment_paddings", "runs_of"]


@dataclass(frozen=True, slots=True)
class Run:
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


def runs_of(rank: ModelRank) -> Iterator[Run]:
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
            padding = 2 * len(members) - 1 + max(alignment_paddings(rank, g), default=0)
            if "local_sub_partitions_of_fp32_groups" in first and "zero_stage" not in first:
                padding = max(padding, len(members) * parts[0].numel - 1)
            yield Run(g, e, len(sharing), tuple(members), stored, padding)


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


def alignment_paddings(rank: ModelRank, g: int) -> list[int]:
    """Elements of padding after each parameter of group ``g`` (0.19.7 with ``parameter_alignment``)."""
    paddings = rank.optim[0].get("param_alignment_paddings")
    if not isinstance(paddings, list) or g >= len(paddings):
        return []
    return [int(p) for p in paddings[g] or []]
