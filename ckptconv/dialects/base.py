"""Say how a training framework names, packs and cuts the slots."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ckptconv.parallel import Cut
from ckptconv.relations import Spec
from ckptconv.slots import Entry, Pack, linear, one
from ckptconv.slots.table import Table

__all__ = [
    "Dialect",
    "Line",
    "Traits",
    "column",
    "for_mtp",
    "for_reading",
    "norm",
    "plain",
    "prefixed",
    "row",
    "traits_of",
    "whole",
]

# Every rank holds the tensor whole.
WHOLE = Cut()
# What a model is like: words of `Line.when`.
Traits = frozenset[str]


@dataclass(frozen=True, slots=True)
class Line(Entry):
    """A tensor of a dialect, and how it is cut over tensor parallel ranks (over expert ones, of experts).

    Words of ``when``: ``mla`` (the layer has latent attention), ``q_lora`` (its query is compressed too),
    ``gated`` (the MLP has a gate), ``moe`` (the layer has experts), ``moe_model`` (some layer has), ``mtp``
    (the model predicts several tokens), ``mm_split`` (MindSpeed's split of latent projections) and
    ``sequential`` (one module an expert). Reading looks at the first three alone: names tell the rest.

    Attributes:
        cut: How it is cut.
        tells: The sibling whose columns tell whether this tensor is cut: it is whole if it has at least as
            many rows.
    """

    cut: Cut = WHOLE
    tells: str | None = None

    def holds(self, traits: Traits) -> bool:
        """Whether all words of ``when`` are among these, negated ones not."""
        words = (self.when or "").split()
        return all((w.lstrip("!") in traits) != w.startswith("!") for w in words)


def column(
    slot: str | Pack, module: str, *, parts: int = 1, bias: bool = True, when: str | None = None
) -> tuple[Line, ...]:
    """Declare a column-parallel module: weight and bias are cut along their first axis."""
    return _lines(slot, module, Cut(0, parts), Cut(0, parts), bias, when)


def row(slot: str | Pack, module: str, *, bias: bool = True, when: str | None = None) -> tuple[Line, ...]:
    """Declare a row-parallel module: the weight is cut along its second axis, the bias is not."""
    return _lines(slot, module, Cut(1), Cut(), bias, when)


def whole(
    slot: str | Pack, module: str, *, bias: bool = False, when: str | None = None, tells: str | None = None
) -> tuple[Line, ...]:
    """Declare a module every rank holds whole; with ``tells`` it may be cut along its first axis."""
    cut = Cut(0) if tells is not None else Cut()
    return tuple(replace(line, tells=tells) for line in _lines(slot, module, cut, cut, bias, when))


def norm(slot: str, stem: str, *, when: str | None = None) -> tuple[Line, ...]:
    """Declare a norm's ``weight`` and ``bias``; ``stem`` ends in what stands before these words."""
    return (
        Line(f"{stem}weight", slot, when),
        Line(f"{stem}bias", f"{slot}.bias", when, optional=True),
    )


def _lines(
    slot: str | Pack, module: str, weight: Cut, bias_cut: Cut, bias: bool, when: str | None
) -> tuple[Line, ...]:
    entries = linear(slot, module, bias=None if bias else False)
    return tuple(
        Line(e.name, e.pack, when, e.optional, cut=weight if i == 0 else bias_cut)
        for i, e in enumerate(entries)
    )


def plain(slot: str, name: str, *, when: str | None = None) -> Line:
    """Declare a tensor by its complete name, whole on every rank."""
    entry = one(slot, name, when=when)
    return Line(entry.name, entry.pack, when)


@dataclass(frozen=True, slots=True)
class Dialect:
    """Describe one way of naming, packing and cutting.

    Attributes:
        name: Name for ``--dialect``.
        lines: Its tensors.
        nested: Whether ``model`` holds dictionaries inside dictionaries, as the legacy one does.
        extra_states: Modules whose ``_extra_state``, None, is written beside the weight.
        arguments: Whose arguments it has: ``megatron`` or ``mindspeed``.
    """

    name: str
    lines: tuple[Line, ...]
    nested: bool = False
    extra_states: tuple[str, ...] = ()
    arguments: Literal["megatron", "mindspeed"] = "megatron"

    def table(self, holds: Callable[[str, str], bool]) -> Table:
        """Return the lines to look names and slots up in."""
        return Table(self.lines, holds=holds)


def prefixed(lines: Iterable[Line], prefix: str) -> tuple[Line, ...]:
    """Put a prefix before every name."""
    return tuple(replace(line, name=prefix + line.name) for line in lines)


def for_mtp(lines: Iterable[Line], prefix: str) -> tuple[Line, ...]:
    """Make the lines of a layer those of a layer for multi-token prediction."""
    return tuple(replace(line, name=prefix + line.name, pack=_mtp(line.pack)) for line in lines)


def _mtp(pack: str | Pack) -> str | Pack:
    if isinstance(pack, str):
        return "mtp" + pack.removeprefix("layers")
    return Pack(pack.kind, tuple(_mtp(p) for p in pack.parts), pack.groups)


# What the names and shapes of a checkpoint do not tell by themselves which line is meant.
_TOLD = ("mla", "q_lora", "gated")


def for_reading(dialect: Dialect) -> tuple[Line, ...]:
    """Return the lines with only those conditions that reading looks at."""

    def kept(when: str | None) -> str | None:
        words = [w for w in (when or "").split() if w.lstrip("!") in _TOLD]
        return " ".join(words) or None

    return tuple(replace(line, when=kept(line.when)) for line in dialect.lines)


def traits_of(tensors: Mapping[str, Spec]) -> Traits:
    """Tell from names and shapes whether attention is latent, its query compressed, and the MLP gated."""
    traits: set[str] = set()
    for name, spec in tensors.items():
        if re.search(r"\.(linear_kv_up_proj|linear_kvb|linear_kv_nope)\.", name):
            traits.add("mla")
        elif re.search(r"\.(linear_q_up_proj|linear_qb|linear_qk_nope)\.", name):
            traits.add("q_lora")
        elif (match := re.fullmatch(r"(.*\.mlp\.)(linear_fc1|dense_h_to_4h)\.weight", name)) is not None:
            down = tensors.get(
                match[1] + {"linear_fc1": "linear_fc2"}.get(match[2], "dense_4h_to_h") + ".weight"
            )
            if down is not None and spec.shape[0] == 2 * down.shape[1]:
                traits.add("gated")
    return frozenset(traits)
