"""Stack the tensors of layers and experts as megatron-core's distributed checkpoints hold them.

Names: megatron-core 0.16.1, ``transformer/transformer_block.py`` (``sharded_state_dict``),
``transformer/moe/experts.py``, ``transformer/mlp.py`` (``apply_swiglu_sharded_factory``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ckptconv.errors import PlanError
from ckptconv.relations import Box, Pair, Relation, Spec

__all__ = ["are_alike", "stacked_axes", "stacks", "turned", "unstacked"]

_HINT: Final = "copy the whole iteration again, from one save"

# The vision model's layers, and its mergers, are always alike (Megatron-Bridge 0.6.2).
_SEEING: Final = r"vision_model\.decoder\.(?:layers|deepstack_merger_list)\."
_STACK: Final = re.compile(rf"(decoder\.layers\.|{_SEEING})(?!\d+\.)(.+)")
_LAYER: Final = re.compile(r"(decoder\.layers\.)(\d+)\.(.+)")
_BESIDE: Final = re.compile(rf"({_SEEING})(\d+)\.(.+)")
# Experts as they are saved: together, or each by its number; and one by one, as the model names them.
_SAVED: Final = re.compile(r"(.*\bmlp\.experts\.)experts\.(?:(\d+)\.)?(linear_fc[12]\.(?:weight|bias))")
_EXPERT: Final = re.compile(r"(.*\bmlp\.experts\.)(linear_fc[12]\.(?:weight|bias))(\d+)")
_HALF: Final = re.compile(r"(.+\.(?:weight|bias)\d*)_([wv])")


def stacked_axes(key: str) -> int:
    """Return how many leading axes of a saved tensor stack layers and experts."""
    expert = _SAVED.fullmatch(key)
    return (_STACK.fullmatch(key) is not None) + (expert is not None and expert[2] is None)


def are_alike(tensors: Mapping[str, Spec]) -> bool:
    """Whether all layers have the same tensors, so that they can be stacked."""
    layers: dict[str, dict[str, Spec]] = {}
    for name, spec in tensors.items():
        if (match := _LAYER.fullmatch(name)) is not None:
            layers.setdefault(match[2], {})[match[3]] = spec
    found = list(layers.values())
    return all(one == found[0] for one in found)


def stacks(tensors: Mapping[str, Spec], *, layers: bool) -> dict[str, Spec]:
    """Return the tensors that are saved: the counterpart of `unstacked`, which relates them.

    Args:
        tensors: Those of the model, layers and experts one by one.
        layers: Whether layers are stacked; they are alike then.
    """
    counts: dict[str, tuple[set[str], set[str], Spec]] = {}
    for name, spec in tensors.items():
        key, layer, expert = name, "", ""
        if (match := _EXPERT.fullmatch(key)) is not None:
            key, expert = f"{match[1]}experts.{match[2]}", match[3]
        match = (_LAYER.fullmatch(key) if layers else None) or _BESIDE.fullmatch(key)
        if match is not None:
            key, layer = f"{match[1]}{match[3]}", match[2]
        of_layers, of_experts, first = counts.setdefault(key, (set(), set(), spec))
        of_layers.add(layer)
        of_experts.add(expert)
        if spec != first:
            raise PlanError(
                f"{name} is {spec.dtype}{list(spec.shape)}, others like it {first.dtype}{list(first.shape)}"
            )
    made = {}
    for key, (of_layers, of_experts, spec) in counts.items():
        axes = [len(found) for found in (of_layers, of_experts) if found != {""}]
        made[key] = Spec((*axes, *spec.shape), spec.dtype)
    return made


def unstacked(tensors: Mapping[str, Spec]) -> Relation:
    """Relate tensors as they are saved (left) to those of single layers and experts (right).

    ``decoder.layers.mlp.linear_fc2.weight`` of shape ``[layers, out, in]`` is ``decoder.layers.{l}.…``;
    experts are a further axis, or have keys of their own; gate and up may be halves ``_w`` and ``_v``
    (``singleton_local_shards``).

    Raises:
        PlanError: if a stack has no axis for what it stacks, or half of a tensor is missing.
    """
    right: dict[str, Spec] = {}
    pairs: list[Pair] = []
    halves: dict[str, dict[str, str]] = {}
    for key, spec in tensors.items():
        match = _HALF.fullmatch(key)
        if match is not None:
            halves.setdefault(match[1], {})[match[2]] = key
            continue
        names, shape = _names(key, spec.shape)
        one = Spec(shape, spec.dtype)
        for i, name in enumerate(names):
            _declare(right, name, one, key)
            part = Box.interval(key, i * one.numel, (i + 1) * one.numel)
            pairs.append(Pair(part, Box.whole(name, one.shape)))
    for key, found in halves.items():
        if found.keys() != {"w", "v"} or tensors[found["w"]] != tensors[found["v"]]:
            raise PlanError(
                f"{key} is saved in halves that do not fit: {', '.join(sorted(found.values()))}", hint=_HINT
            )
        half = tensors[found["w"]]
        names, shape = _names(key, half.shape)
        whole = Spec((2 * shape[0], *shape[1:]), half.dtype)
        if len(names) != 1:
            raise PlanError(f"{key} is saved in halves of a stack, which no release does", hint=_HINT)
        _declare(right, names[0], whole, key)
        for i, part_name in enumerate((found["w"], found["v"])):
            to = Box.interval(names[0], i * half.numel, (i + 1) * half.numel)
            pairs.append(Pair(Box.whole(part_name, half.shape), to))
    return Relation(dict(tensors), right, tuple(pairs))


def _declare(right: dict[str, Spec], name: str, spec: Spec, key: str) -> None:
    if name in right:
        raise PlanError(f"{key} holds {name}, which another tensor holds as well", hint=_HINT)
    right[name] = spec


def _names(key: str, shape: tuple[int, ...]) -> tuple[list[str], tuple[int, ...]]:
    """Return the names of what a saved tensor stacks, in its order, and the shape of each."""
    axes = stacked_axes(key)
    if len(shape) < axes:
        raise PlanError(f"{key} {list(shape)} has no axis for what it stacks", hint=_HINT)
    counts, rest = list(shape[:axes]), shape[axes:]
    match = _STACK.fullmatch(key)
    names = [key] if match is None else [f"{match[1]}{layer}.{match[2]}" for layer in range(counts.pop(0))]
    if (expert := _SAVED.fullmatch(key)) is None:
        return names, rest
    numbers: Iterable[int] = [int(expert[2])] if expert[2] is not None else range(counts.pop(0))
    found = [match for name in names if (match := _SAVED.fullmatch(name)) is not None]
    return [f"{m[1]}{m[3]}{e}" for m in found for e in numbers], rest


def turned(where: str, spec: Spec, names: Sequence[str], rows: int, columns: int) -> Relation:
    """Relate a tensor that holds one matrix an expert to their transposes, one by one.

    Args:
        where: Name of the left side; in memory it is ``[experts, rows, columns]``, whatever its own shape.
        spec: Its shape and dtype.
        names: Names of the right side, one an expert; each is ``[columns, rows]``.
        rows: Rows of each matrix as it is stored.
        columns: Its columns.
    """
    single = Spec((columns, rows), spec.dtype)
    pairs = [
        Pair(
            Box.of(
                where,
                spec.shape,
                view=(len(names), rows, columns),
                start=(e, 0, 0),
                size=(1, rows, columns),
                order=(0, 2, 1),
            ),
            Box.whole(name, single.shape),
        )
        for e, name in enumerate(names)
    ]
    return Relation({where: spec}, dict.fromkeys(names, single), tuple(pairs))
