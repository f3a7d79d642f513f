"""Say how a training framework names, packs and cuts the slots."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

from ckptconv.facts.value import Fact
from ckptconv.parallel import Cut
from ckptconv.records import dataclass
from ckptconv.relations import Spec
from ckptconv.slots import Entry, Pack, Part, Table, Words, linear
from ckptconv.slots.entry import form, numbers
from ckptconv.slots.pack import over_leaves

__all__ = [
    "Dialect",
    "Line",
    "column",
    "for_mtp",
    "module",
    "norm",
    "plain",
    "prefixed",
    "row",
    "whole",
]

# Every rank holds the tensor whole.
WHOLE = Cut()


@dataclass(frozen=True, slots=True)
class Line(Entry):
    """A tensor of a dialect, and how it is cut over tensor parallel ranks (over expert ones, of experts).

    Attributes:
        cut: How it is cut.
        tells: The sibling whose columns tell whether this tensor is cut: it is whole if it has at least as
            many rows.
    """

    cut: Cut = WHOLE
    tells: str | None = None


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


def norm(
    slot: str, stem: str, *, when: str | None = None, names: tuple[str, str] = ("weight", "bias")
) -> tuple[Line, ...]:
    """Declare a norm's weight and the bias it may have; ``stem`` ends in what stands before these words."""
    return (
        Line(f"{stem}{names[0]}", slot, when),
        Line(f"{stem}{names[1]}", f"{slot}.bias", when, optional=True),
    )


def _lines(
    slot: str | Pack, module: str, weight: Cut, bias_cut: Cut, bias: bool, when: str | None
) -> tuple[Line, ...]:
    entries = linear(slot, module, bias=None if bias else False)
    return tuple(
        Line(e.name, e.pack, when, e.optional, cut=weight if i == 0 else bias_cut)
        for i, e in enumerate(entries)
    )


def module(slot: str | Pack, name: str, when: str | None = None) -> tuple[Line, ...]:
    """Declare a module's weight and the bias it may have, of a library without ranks."""
    return _lines(slot, name, WHOLE, WHOLE, True, when)


def plain(
    slot: str | Pack, name: str, *, when: str | None = None, cut: int | None = None, copy: bool = False
) -> Line:
    """Declare a tensor by its complete name, whole on every rank or cut along an axis."""
    return Line(name, slot, when, copy=copy, cut=Cut(cut))


# Words that hold of the layer of a tensor: the tensor, and the word.
Told = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Describe one way of naming, packing and cutting.

    Attributes:
        name: Name for ``--dialect``.
        lines: Its tensors.
        tells: Words that names tell, each with a pattern of names, numbers written as ``#``. They hold of the
            layer the name is in, or of the model.
        shapes: What shapes tell beside: of the tensors of a part of the model, the names of all known.
        reads: Further words that reading looks at: those that ``shapes`` tell, and those it leaves open. Of
            words that are neither here nor in ``tells``, names say which line is meant.
        leaves_open: The words that names and shapes leave open, each with what is most likely.
        ignored: Patterns of buffers that are stored with the weights.
        nested: Whether ``model`` holds dictionaries inside dictionaries, as the legacy one does.
        extra_states: Modules whose ``_extra_state``, None, is written beside the weight.
        arguments: Whose arguments it has.
        parts: Parts of larger models beside the language model that it has names for.
        ranks: Whether its framework cuts tensors over ranks; else ``lines`` have no cuts.
        library: Who names tensors so on any container (a state dict, a distributed checkpoint): for people.
        facts: Reads what the library's own files say of the model, in the folders beside the weights. A fact
            that is one of ``reads`` is a word.
        bare: Changes a stored name to that of a line: takes off a prefix, counts layers from 0.
    """

    name: str
    lines: tuple[Line, ...]
    tells: Mapping[str, str] = field(default_factory=dict)
    shapes: Callable[[Mapping[str, Spec], Collection[str]], Told] | None = None
    reads: tuple[str, ...] = ()
    leaves_open: Callable[[Mapping[str, Spec], Words], dict[str, bool]] | None = None
    ignored: tuple[str, ...] = ()
    nested: bool = False
    extra_states: tuple[str, ...] = ()
    arguments: Literal["megatron", "mindspeed"] = "megatron"
    parts: tuple[Part, ...] = ()
    ranks: bool = True
    library: str = ""
    facts: Callable[[Sequence[Path]], Mapping[str, Fact]] | None = None
    bare: Callable[[str], str] = str

    def table(self, words: Words, grid: Mapping[str, int] | None = None) -> Table:
        """Return the lines to look names and slots up in."""
        return Table(self.lines, words=words, grid=grid or {}, parts=self.parts)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor is a buffer the model makes itself."""
        return any(re.fullmatch(p, name) for p in self.ignored)

    def reading(self, words: Words) -> Words:
        """Return words as reading knows them: names tell the rest."""
        return words.about((*self.tells, *self.reads))

    def told(self, tensors: Mapping[str, Spec], names: Collection[str] | None = None) -> Words:
        """Return the words that names and shapes tell of each layer.

        Args:
            tensors: What a checkpoint holds, or a part of it.
            names: What all of it holds, if that is more.
        """
        kinds = {form(line.name): line.slots[0].partition(".")[0] for line in self.lines if "*" in line.name}
        here: dict[str, tuple[str, ...]] = {}
        layers: dict[str, set[str]] = {}
        model = set[str]()

        def of(shape: str, values: tuple[int, ...]) -> set[str]:
            kind = kinds.get(shape)
            return layers.setdefault(f"{kind}.{values[0]}", set()) if kind in ("layers", "mtp") else model

        for name in tensors:
            shape, values = numbers(name)
            if shape not in here:
                here[shape] = tuple(w for w, pattern in self.tells.items() if re.fullmatch(pattern, shape))
            of(shape, values).update(here[shape])
        for name, word in (
            self.shapes(tensors, tensors if names is None else names) if self.shapes is not None else ()
        ):
            of(*numbers(name)).add(word)
        made = Words(frozenset(model), {layer: frozenset(words) for layer, words in layers.items()})
        return self.reading(made)

    def usual(self, tensors: Mapping[str, Spec]) -> Words:
        """Return the words that hold if nothing but the tensors is known."""
        words = self.told(tensors)
        left = self.leaves_open(tensors, words) if self.leaves_open is not None else {}
        return words.beside([word for word, likely in left.items() if likely])


def prefixed(lines: Iterable[Line], prefix: str) -> tuple[Line, ...]:
    """Put a prefix before every name."""
    return tuple(replace(line, name=prefix + line.name) for line in lines)


def for_mtp(lines: Iterable[Line], prefix: str) -> tuple[Line, ...]:
    """Make the lines of a layer those of a layer for multi-token prediction."""
    return tuple(replace(line, name=prefix + line.name, pack=over_leaves(line.pack, _mtp)) for line in lines)


def _mtp(slot: str) -> str:
    return "mtp" + slot.removeprefix("layers")
