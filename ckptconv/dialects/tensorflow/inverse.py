"""Say which variables a TensorFlow class of transformers has, and which torch tensor each of them holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Final

from ckptconv.dialects.tensorflow.classes import scope_of
from ckptconv.dialects.tensorflow.names import Variable, torch_variable, unscoped
from ckptconv.dialects.tensorflow.special import Model, settle
from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = ["Placement", "variables_for"]

Shape = tuple[int, ...]

_FIRST: Final = 700_001  # numbers that stand for those of layers while the rule is applied
_OLD: Final = re.compile(r"LayerNorm\.(gamma|beta)$")  # as ESM is still saved by transformers 5.23
_NEW: Final = {"gamma": "weight", "beta": "bias"}
_NUMBER: Final = re.compile(r"70000\d")


@dataclass(frozen=True, slots=True)
class Placement:
    """Say where a tensor goes.

    Attributes:
        layer: The Keras layer whose group holds the variable.
        name: The variable's whole name, ``:0`` included.
        shape: Its shape in TensorFlow.
        source: The torch tensor.
        order: The variable's axes from the slowest to the fastest of the torch tensor.
        is_copy: Whether a variable before it holds that tensor already.
        is_again: Whether a layer before it has this very variable: Keras saves it with each.
    """

    layer: str
    name: str
    shape: Shape
    source: str
    order: tuple[int, ...]
    is_copy: bool
    is_again: bool


@dataclass(frozen=True, slots=True)
class _Template:
    """A variable of a class; ``*`` in its name is a layer's number."""

    layer: str
    name: str
    is_whole: bool
    rank: int


def variables_for(model: Model, shapes: Mapping[str, Shape]) -> tuple[list[Placement], list[str]]:
    """Return where each torch tensor goes, in the order Keras saves, and the tensors that go nowhere.

    Args:
        model: Type and torch class.
        shapes: The torch tensors' shapes by name.

    Raises:
        PlanError: if the class had no TensorFlow form, or a variable cannot have its tensor's shape.
    """
    templates = _templates(model)
    rows = {t.name: _row(t) for t in templates}
    written, left = settle(rows, model)
    by_key = {(_NUMBER.sub("*", v.name), len(v.shape)): name for name, v in written.items()}
    found: dict[str, list[tuple[str, str]]] = {}
    homeless: list[str] = []
    for torch, shape in shapes.items():
        for key in _keys(torch):
            if (name := by_key.get((key, len(shape)))) is not None:
                found.setdefault(name, []).append((torch, _filled(name, key, torch)))
                break
        else:
            homeless.append(torch)
    scope = scope_of(model.architecture)
    made: list[Placement] = []
    placed: set[str] = set()
    for t in templates:
        for torch, name in found.get(t.name, ()):
            made.append(_placed(t, name, scope, torch, shapes[torch], name in placed))
            placed.add(name)
    for t in templates:
        if t.name in left:  # a copy; or never read, and so what has its name is as good as any
            torch = left[t.name].copy_of or rows[t.name].name
            if torch in shapes:
                made.append(replace(_placed(t, t.name, scope, torch, shapes[torch], False), is_copy=True))
    return made, homeless


@cache
def _data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("variables.json").read_bytes())
    return found


def _templates(model: Model) -> list[_Template]:
    known = _data()["models"].get(model.model_type, {"classes": {}})
    ranges = known["classes"].get(model.architecture)
    if ranges is None:
        there = ", ".join(sorted(known["classes"])) or "none of that model type"
        raise PlanError(
            f"{model.architecture or 'the class'} had no TensorFlow form in {_data()['release']} ({there})",
            hint="--format safetensors is what every release loads",
        )
    lines = [
        known["variables"][i] for a, b in zip(ranges[::2], ranges[1::2], strict=True) for i in range(a, b)
    ]
    return [_parsed(line) for line in lines]


def _parsed(line: str) -> _Template:
    """Read ``[LAYER|][^]NAME RANK``; ``^`` says that the name has no scope of the model before it."""
    name, rank = line.rsplit(" ", 1)
    layer, _, bare = name.rpartition("|")
    whole = bare.removeprefix("^")
    return _Template(layer or whole.partition("/")[0], whole, bare.startswith("^"), int(rank))


def _row(template: _Template) -> Variable:
    """Apply the rule for names, with a number of its own in the place of each ``*``."""
    numbers = iter(range(_FIRST, _FIRST + 9))
    name = re.sub(r"\*", lambda _: str(next(numbers)), template.name)
    return torch_variable(unscoped(name) if template.is_whole else name, _example(template))


def _example(template: _Template) -> Shape:
    """Return a shape of the template's rank that the rule for ones applies to."""
    last = template.name.rpartition("/")[2]
    if last == "bias" and template.rank == 2:
        return (1, 2)
    if last == "weight_g":
        return (2, 1, 1)
    return (1,) if last == "logit_scale" and template.rank else (2,) * template.rank


def _keys(torch: str) -> Iterator[str]:
    """Yield a name with ``*`` for its numbers, and those that keep some of the last."""
    parts = _OLD.sub(lambda m: f"LayerNorm.{_NEW[m[1]]}", torch).split(".")
    at = [i for i, p in enumerate(parts) if p.isdecimal()]
    for kept in range(len(at) + 1):
        starred = set(at[: len(at) - kept])
        yield ".".join("*" if i in starred else p for i, p in enumerate(parts))


def _filled(name: str, key: str, torch: str) -> str:
    """Put a tensor's numbers in the place of the stars of a variable's name."""
    pairs = zip(key.split("."), torch.split("."), strict=True)
    numbers = iter([number for star, number in pairs if star == "*"])
    return re.sub(r"\*", lambda _: next(numbers), name)


def _placed(
    template: _Template, name: str, scope: str, torch: str, shape: Shape, is_again: bool
) -> Placement:
    order = _row(template).order
    turned = _unshaped(template, shape)
    mine = [0] * len(turned)
    for axis, size in zip(order, turned, strict=True):
        mine[axis] = size
    made = torch_variable(name, tuple(mine))
    if made.shape != shape or prod(mine) != prod(shape):
        raise PlanError(
            f"{torch} of shape {list(shape)} cannot be the variable {name} of {template.rank} dimensions",
            hint="compare config.json with the weights",
        )
    whole = name if template.is_whole else f"{scope}/{name}"
    return Placement(template.layer, f"{whole}:0", tuple(mine), torch, order, is_again, is_again)


def _unshaped(template: _Template, shape: Shape) -> Shape:
    """Return a torch shape with as many axes as the variable has: ones are put before it or taken away."""
    if template.name.endswith("/weight_g"):
        return shape[::-1]
    if len(shape) > template.rank:
        return shape[: template.rank]
    return (*(1,) * (template.rank - len(shape)), *shape)
