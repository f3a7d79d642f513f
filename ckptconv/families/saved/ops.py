"""Undo the operations transformers reads tensors with, as relations: what a model holds, to what is written.

Every operation here moves elements and changes none (transformers 5.23, ``core_model_loading.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.relations import (
    Box,
    Pair,
    Relation,
    Spec,
    chunk_sizes,
    in_a_row,
    permuted,
    piled,
    renamed,
    split,
)

__all__ = ["UNDO", "written"]

Config = Mapping[str, Any]
Said = Mapping[str, Any]
Tensors = Mapping[str, Spec]
Keys = tuple[str, ...]
"""The targets of a rule as text; ``*`` stands for a number."""


def written(
    ops: Sequence[tuple[str, Said]], tensors: Tensors, sources: Keys, targets: Keys, config: Config
) -> Relation:
    """Relate tensors under the sources of a rule to those under its targets.

    Args:
        ops: The rule's operations, the last that reading does first.
        tensors: What is held, by the source that matched, in any order.
        sources: The sources as text.
        targets: The targets as text.
        config: The content of config.json.

    Raises:
        PlanError: if the shapes do not fit, or config.json lacks what an operation needs.
    """
    held = {s: tensors[s] for s in sources if s in tensors}
    relation = Relation.union(renamed(n, n, s) for n, s in held.items())
    for name, said in ops:
        if name not in UNDO:
            raise PlanError(f"{name}: an operation of transformers that is not known here")
        relation = relation.compose(UNDO[name](relation.right, said, targets, config))
    return relation


def _only(tensors: Tensors) -> tuple[str, Spec]:
    if len(tensors) != 1:
        raise PlanError(f"{len(tensors)} tensors where transformers has one: {', '.join(tensors)}")
    return next(iter(tensors.items()))


def _chunk(tensors: Tensors, said: Said, targets: Keys, config: Config) -> Relation:
    """Undo Concatenate: cut one tensor into as many as there are targets."""
    name, spec = _only(tensors)
    if (attribute := said.get("num_shards_attribute")) is not None:
        count = (config.get("text_config") or config).get(attribute)
        if not isinstance(count, int):
            raise PlanError(f"config.json has no {attribute}", hint="give a complete --config")
        targets = tuple([targets[0].replace("*", str(i)) for i in range(count)])
    axis = said.get("dim", 0)
    sizes = chunk_sizes(spec.shape[axis], len(targets))
    return split(targets, name, spec, axis=axis, sizes=sizes).invert()


def _concat(tensors: Tensors, said: Said, targets: Keys, config: Config) -> Relation:
    """Undo Chunk and Split: join tensors into one."""
    return in_a_row(targets[0], tensors, axis=said.get("dim", 0)).invert()


def _unstack(tensors: Tensors, said: Said, targets: Keys, config: Config) -> Relation:
    """Undo MergeModulelist: a tensor for each row of the first axis."""
    if said.get("dim", 0) != 0:
        raise PlanError("modules stacked along another axis than the first")
    parts = []
    for name, spec in tensors.items():
        key = targets[0] if len(tensors) == 1 else name
        one_of = Spec(spec.shape[1:], spec.dtype)
        rows = {key.replace("*", str(i)): one_of for i in range(spec.shape[0])}
        parts.append(piled(name, rows))
    return Relation.union(parts)


def _transpose(tensors: Tensors, said: Said, targets: Keys, config: Config) -> Relation:
    """Undo Transpose; one that looks at shapes first finds those of the model, and leaves them."""
    name, spec = _only(tensors)
    new = name if len(targets) > 1 else targets[0]
    if said.get("check_dims"):
        return renamed(name, new, spec)
    a, b = said.get("dim0", 0), said.get("dim1", 1)
    order = list(range(len(spec.shape)))
    order[a], order[b] = order[b], order[a]
    whole = Spec(tuple([spec.shape[i] for i in order]), spec.dtype)
    return permuted(name, new, whole, order=order)


def _interleave(tensors: Tensors, said: Said, targets: Keys, config: Config) -> Relation:
    """Undo Interleave: two halves, index by index in turns (or the other way round)."""
    name, spec = _only(tensors)
    axis = said.get("dim", 0)
    before, length, after = prod(spec.shape[:axis]), spec.shape[axis], prod(spec.shape[axis + 1 :])
    return _swapped(name, targets[0], spec, before, length, after, halves=not said.get("inverse"))


def _rope(tensors: Tensors, said: Said, targets: Keys, config: Config) -> Relation:
    """Undo PermuteForRope: the rotary dimensions of each head from two halves to neighbouring pairs."""
    inside = config.get(said.get("subconfig_key") or "") or config
    heads = inside.get("num_attention_heads", 1)
    names = said.get("permute_layer_names")
    parts = []
    for name, spec in tensors.items():
        new = targets[0] if len(targets) == len(tensors) == 1 else name
        if names is not None and not any(n in name for n in names):
            parts.append(renamed(name, new, spec))
            continue
        if not isinstance(heads, int) or heads < 1 or spec.shape[0] % (2 * heads):
            raise PlanError(f"{name} {list(spec.shape)} has no {heads} heads, says config.json")
        rows, rest = spec.shape[0] // heads, prod(spec.shape[1:])
        parts.append(_swapped(name, new, spec, heads, rows, rest, halves=not said.get("inverse")))
    return Relation.union(parts)


def _swapped(
    name: str, new: str, spec: Spec, before: int, length: int, after: int, *, halves: bool
) -> Relation:
    """Relate an axis of two halves to neighbouring pairs; without ``halves`` pairs to halves."""
    if length % 2:
        raise PlanError(f"{name} {list(spec.shape)} has no two halves")
    inner = (2, length // 2) if halves else (length // 2, 2)
    box = Box.of(name, spec.shape, view=(before, *inner, after), order=(0, 2, 1, 3))
    return Relation({name: spec}, {new: spec}, (Pair(box, Box.whole(new, spec.shape)),))


def _convolution(tensors: Tensors, said: Said, targets: Keys, config: Config) -> Relation:
    """Undo Conv3dToLinear: the columns are channels and the axes of a kernel again."""
    name, spec = _only(tensors)
    shape = (spec.shape[0], said["in_channels"], *said["kernel_size"])
    return renamed(name, name if len(targets) > 1 else targets[0], Spec(shape, spec.dtype), shape=spec.shape)


def _ernie(tensors: Tensors, said: Said, targets: Keys, config: Config) -> Relation:
    """Undo ErnieFuseAndSplitTextVisionExperts: experts of one list, those for text first."""
    axis = said.get("concat_dim", 1)
    cut, rows, done = [], [], 0
    for number, (name, spec) in enumerate(tensors.items()):
        sizes = chunk_sizes(spec.shape[axis], len(targets))
        parts = [f"{t}\n{number}" for t in targets]
        halves = split(parts, name, spec, axis=axis, sizes=sizes)
        cut.append(halves.invert())
        for target, part in zip(targets, parts, strict=True):
            held = halves.left[part]
            one_of = Spec(held.shape[1:], held.dtype)
            named = [target.replace("*", str(done + i)) for i in range(held.shape[0])]
            rows.append(piled(part, dict.fromkeys(named, one_of)))
        done += spec.shape[0]
    return Relation.union(cut).compose(Relation.union(rows))


UNDO: dict[str, Callable[[Tensors, Said, Keys, Config], Relation]] = {
    "Chunk": _concat,
    "Concatenate": _chunk,
    "Conv3dToLinear": _convolution,
    "ErnieFuseAndSplitTextVisionExperts": _ernie,
    "Interleave": _interleave,
    "MergeModulelist": _unstack,
    "PermuteForRope": _rope,
    "Split": _concat,
    "Transpose": _transpose,
}
