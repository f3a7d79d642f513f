"""Place layers on pipeline stages and their virtual chunks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ckptconv.errors import PlanError
from ckptconv.parallel.grid import Grid

__all__ = ["Chunk", "Stages", "chunk_order", "number_layers", "parse_layout", "stage_layers"]


class Chunk(NamedTuple):
    """Name a piece of the model that runs at once: a pipeline stage and a virtual chunk on it."""

    pp: int
    vpp: int


# For every chunk its layers: number on the chunk to number in the model.
Stages = Mapping[Chunk, Mapping[int, int]]


def chunk_order(grid: Grid) -> list[Chunk]:
    """List the chunks in the order the model runs through them.

    Stages come in order for each virtual chunk; with dualpipev the second chunk runs backwards, so the model
    ends on the stage it began on.
    """
    back = grid.dualpipe
    return [
        Chunk(p, v)
        for v in range(grid.vpp)
        for p in (reversed(range(grid.pp)) if back and v % 2 else range(grid.pp))
    ]


def number_layers(grid: Grid, local: Mapping[Chunk, Collection[int]]) -> dict[Chunk, dict[int, int]]:
    """Number the layers found on the chunks through the model; gaps (no-op layers) take no number."""
    stages: dict[Chunk, dict[int, int]] = {}
    done = 0
    for chunk in chunk_order(grid):
        here = sorted(local.get(chunk, ()))
        stages[chunk] = {layer: done + i for i, layer in enumerate(here)}
        done += len(here)
    return stages


def stage_layers(
    grid: Grid,
    layers: int,
    *,
    counts: Sequence[int] | None = None,
    noop: Collection[int] = (),
    first: int | None = None,
    last: int | None = None,
    embedding: bool = False,
    loss: bool = False,
) -> dict[Chunk, dict[int, int]]:
    """Divide layers over chunks as Megatron and MindSpeed do.

    Args:
        grid: The ranks.
        layers: Number of layers of the model.
        counts: Layers of each chunk in the order of `chunk_order`; the rest is then not looked at.
        noop: Positions, counted with themselves, where a layer does nothing and has no weights.
        first: Layers of the first stage (``decoder_first_pipeline_num_layers``).
        last: Layers of the last stage.
        embedding: The embedding counts as a layer of the first stage.
        loss: The loss counts as a layer of the last stage.

    Raises:
        PlanError: if they do not divide.
    """
    order = chunk_order(grid)
    total = layers + len(noop)
    if counts is None:
        counts = _counts(grid, total, first, last, embedding, loss)
    asked = list(counts)
    if len(counts) == grid.pp and grid.vpp > 1 and not grid.dualpipe:
        counts = [n // grid.vpp for n in counts] * grid.vpp
    if len(counts) != len(order) or sum(counts) != total or min(counts) < 0:
        chunks = "stages" if grid.vpp == 1 else "chunks"
        raise PlanError(
            f"{total} layers are not {asked} on {len(order)} {chunks}",
            hint="give --layers-per-stage one number a stage (a chunk with --vpp) that add up to the layers",
        )
    skipped = set(noop)
    stages: dict[Chunk, dict[int, int]] = {}
    position = number = 0
    for chunk, count in zip(order, counts, strict=True):
        stages[chunk] = {}
        for local in range(count):
            if position not in skipped:
                stages[chunk][local] = number
                number += 1
            position += 1
    if number != layers:
        raise PlanError(f"no-op layers {sorted(skipped)} are not all among the {total} positions")
    return stages


def _counts(
    grid: Grid, total: int, first: int | None, last: int | None, embedding: bool, loss: bool
) -> list[int]:
    """Return layers per chunk (core 0.16.1, ``megatron/core/transformer/transformer_block.py``)."""
    chunks = grid.pp * grid.vpp
    if first is None and last is None:
        padded = total + embedding + loss
        if padded % chunks:
            raise PlanError(
                f"{padded} layers cannot be divided over {chunks} pipeline chunks",
                hint="choose --pp and --vpp that divide them, or give --layers-per-stage",
            )
        counts = [padded // chunks] * chunks
        counts[0] -= embedding
        counts[-1] -= loss
        return counts
    given = [n for n in (first, last) if n is not None]
    stages = grid.pp - len(given)
    middle = total - sum(given)
    if stages < 0 or middle < 0 or (stages and middle % stages) or (not stages and middle):
        raise PlanError(
            f"{total} layers, {first} on the first and {last} on the last stage, leave {middle} for {stages}",
            hint="correct the layers of the first and the last stage, or --pp",
        )
    per = middle // stages if stages else 0
    sizes = [first if first is not None else per, *[per] * (grid.pp - 2), last if last is not None else per]
    if any(n % grid.vpp for n in sizes):
        raise PlanError(f"stages of {sizes} layers cannot be divided into {grid.vpp} virtual chunks")
    return [n // grid.vpp for n in sizes] * grid.vpp


def parse_layout(text: str) -> list[int]:
    """Return the layers per chunk of a ``pipeline_model_parallel_layout`` such as ``Et|ttt|ttL``.

    ``|`` ends a stage, ``E`` is the embedding, ``t`` or ``d`` a decoder layer, ``m`` one for multi-token
    prediction, ``L`` the loss; ``x*n`` and ``(xy)*n`` repeat (core 0.16.1,
    ``megatron/core/transformer/pipeline_parallel_layer_layout.py``).

    Raises:
        PlanError: if it is no layout.
    """
    plain = text.replace(",", "").replace(" ", "")
    while (match := re.search(r"\(([^()]*)\)\*(\d+)|([A-Za-z|])\*(\d+)", plain)) is not None:
        body, count = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
        if int(count) * len(body) > 100_000:
            raise PlanError(f"a pipeline layout of more than 100,000 layers: {text[:60]!r}")
        plain = plain[: match.start()] + body * int(count) + plain[match.end() :]
    if re.fullmatch(r"[EtdmL|]*", plain) is None:
        raise PlanError(
            f"not a pipeline layout: {text[:60]!r}", hint="write E, t, m, L and | as Megatron does"
        )
    return [sum(c in "td" for c in stage) for stage in plain.split("|")]
