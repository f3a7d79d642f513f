"""Lay out the files of a MindSpore checkpoint: one, or one a rank as a strategy cuts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from ckptconv.containers import safetensors
from ckptconv.containers.base import FileLayout
from ckptconv.containers.mindspore import mindspore_out
from ckptconv.dialects.mindformers.entries import beside_weights
from ckptconv.dialects.mindformers.strategy import Strategy, find_strategies, read_strategies
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError
from ckptconv.parallel.devices import Cut, cut, slice_box
from ckptconv.plans.checkpoint import Note
from ckptconv.plans.plan import OutFile
from ckptconv.relations import Box, Pair, Relation, Spec, restrict
from ckptconv.slots.translate import some

__all__ = ["Container", "lay_out_files"]

Container = Literal["ckpt", "safetensors"]
_STEM: Final = "checkpoint"


def lay_out_files(
    tensors: Mapping[str, Spec], container: Container, strategy: Path | None
) -> tuple[Relation, tuple[OutFile, ...], list[Note]]:
    """Lay files out: one, or one a rank.

    Returns:
        The tensors (left) to what is placed in the files (right); the files; notes.
    """
    if strategy is None:
        made = [
            _file(f"{_STEM}.{container}", "", {n: (s, Box.whole(n, s.shape)) for n, s in tensors.items()})
        ]
        return _joined(tensors, made), tuple(f for _, _, f in made), []
    found = read_strategies(find_strategies(strategy, strategy))
    made, taken, notes = [], set[str](), []
    missing = [n for n in tensors if not any(n in s for s in found.stages.values())]
    for stage in sorted(found.stages):
        for position in range(found.ranks):
            rank = stage * found.ranks + position
            parts = {
                n: c for n, s in tensors.items() if (c := _cut(found, stage, n, s, n in missing)) is not None
            }
            boxes = {n: slice_box(n, tensors[n].shape, c, position) for n, c in parts.items()}
            held = {
                n: (Spec(_part(tensors[n].shape, c), tensors[n].dtype), boxes[n]) for n, c in parts.items()
            }
            if not held:
                raise PlanError(f"the strategy gives rank {rank} no tensor of the model", where=strategy)
            made.append(_file(f"rank_{rank}/{_STEM}_{rank}.{container}", f"rank_{rank}/", held, taken))
    if missing:
        text = (
            f"{len(missing)} tensors are in no strategy file, written whole on every rank: {some(missing, 2)}"
        )
        notes.append(Note("guess", text))
    lost = {n for names in found.stages.values() for n in names if beside_weights(n) is None} - tensors.keys()
    if lost:
        text = f"{len(lost)} parameters of the strategy are not in the model: {some(sorted(lost), 2)}"
        notes.append(Note("warning", text))
    return _joined(tensors, made), tuple(f for _, _, f in made), notes


def _cut(strategy: Strategy, stage: int, name: str, spec: Spec, everywhere: bool) -> Cut | None:
    layout = strategy.stages[stage].get(name)
    if layout is None:
        return Cut(((),) * len(spec.shape)) if everywhere else None
    made = cut(layout, len(spec.shape), name)
    if any(n % c for n, c in zip(spec.shape, made.counts, strict=True)):
        raise PlanError(
            f"{name} {list(spec.shape)} cannot be cut by {list(made.counts)} as the strategy says",
            hint="check that --strategy is of a run of this model",
        )
    return made


def _part(shape: tuple[int, ...], made: Cut) -> tuple[int, ...]:
    return tuple(n // c for n, c in zip(shape, made.counts, strict=True))


_File = tuple[dict[str, Spec], list[Pair], OutFile]


def _file(
    name: str, prefix: str, held: Mapping[str, tuple[Spec, Box]], taken: set[str] | None = None
) -> _File:
    """Lay one file out; ``taken`` collects the slices that an earlier file provides."""
    listed = [(n, dtype_named(s.dtype), s.shape) for n, (s, _) in held.items()]
    container: Container = "ckpt" if name.endswith(".ckpt") else "safetensors"
    layout, parts = _layout(listed, container)
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    for n, (spec, box) in held.items():
        key = f"{n}@{box.offset}:{box.size}:{box.stride}"
        copy = taken is not None and key in taken
        if taken is not None:
            taken.add(key)
        whole = Pair(box, Box.whole(n, spec.shape), right_copy=copy)
        for part in parts.get(n, (mindspore_out.Part(n, 0, spec.numel),)):
            placed = prefix + part.placed
            right[placed] = Spec(spec.shape if n not in parts else (part.numel,), spec.dtype)
            for piece in restrict(whole, part.start, part.start + part.numel):
                moved = Box(placed, piece.right.offset - part.start, piece.right.size, piece.right.stride)
                pairs.append(piece._replace(right=moved))
    renamed = tuple(replace(t, name=prefix + t.name) for t in layout.tensors)
    return right, pairs, OutFile(name, container, replace(layout, tensors=renamed))


def _layout(
    tensors: Sequence[tuple[str, DType, tuple[int, ...]]], container: Container
) -> tuple[FileLayout, Mapping[str, tuple[mindspore_out.Part, ...]]]:
    if container == "safetensors":
        return safetensors.layout(tensors, {"format": "ms"}), {}
    made = mindspore_out.layout(tensors)
    return made.file, made.parts


def _joined(tensors: Mapping[str, Spec], files: Iterable[_File]) -> Relation:
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    for specs, more, _ in files:
        right |= specs
        pairs += more
    return Relation(dict(tensors), right, tuple(pairs))
