"""Declare stored tensors: an entry says a tensor's name and the slots it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field, replace
from functools import lru_cache

from ckptconv.records import dataclass
from ckptconv.slots.pack import Pack, leaves, over_leaves

__all__ = ["Entry", "fill_in", "form", "holes", "is_apart", "linear", "numbers", "one", "predicting"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored tensor of an architecture.

    Attributes:
        name: Its name in a file; ``*`` is the layer's number, ``{e}`` the expert's.
        pack: The slot it holds, or how it packs several.
        when: What it exists for: words that all hold, ``!`` before one negates (see `ckptconv.slots.words`).
        optional: Whether a model is complete without it.
        copy: It repeats a slot that another entry holds.
        as_model: Whether a norm has the model's own values, wherever norms are stored around zero.
        slots: The slots in the pack, in order.
    """

    name: str
    pack: str | Pack
    when: str | None = None
    optional: bool = False
    copy: bool = False
    as_model: bool = False
    slots: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(leaves(self.pack)))


def one(
    slot: str | Pack, name: str, *, when: str | None = None, optional: bool = False, copy: bool = False
) -> Entry:
    """Declare a stored tensor by its complete name."""
    return Entry(name, slot, when, optional, copy)


def linear(
    slot: str | Pack, module: str, *, bias: str | bool | None = None, when: str | None = None
) -> tuple[Entry, ...]:
    """Declare a module's ``weight`` and its ``bias``, which packs the ``.bias`` of the same slots.

    Args:
        slot: What the weight holds.
        module: Name of the module.
        bias: What the bias exists for (`Entry.when`); True if it always does, None if it may, False if never.
        when: What both exist for.
    """
    weight = Entry(f"{module}.weight", slot, when)
    if bias is False:
        return (weight,)
    both = " ".join(w for w in (when, bias) if isinstance(w, str)) or None
    return weight, Entry(f"{module}.bias", _biased(slot), both, optional=bias is None)


def predicting(entries: Iterable[Entry], layer: str, under: str) -> tuple[Entry, ...]:
    """Declare a layer for multi-token prediction that is like the others, under a name of its own.

    Args:
        entries: Those of a model; the ones of its layers are taken.
        layer: What their names begin with: ``model.layers.*.``.
        under: What to put in its place.
    """
    return tuple(
        replace(
            e,
            name=under + e.name.removeprefix(layer),
            pack=over_leaves(e.pack, lambda slot: "mtp" + slot.removeprefix("layers")),
        )
        for e in entries
        if e.name.startswith(layer)
    )


def is_apart(entry: Entry) -> bool:
    """Whether an entry of a layer for multi-token prediction has a name, and a number, of its own."""
    parts = entry.name.partition("*")[0].split(".")
    return entry.slots[0].startswith("mtp.") and any(part.startswith("mtp") for part in parts)


def _biased(pack: str | Pack) -> str | Pack:
    if isinstance(pack, str):
        return f"{pack}.bias"
    if pack.kind == "transposed":
        return _biased(pack.parts[0])
    return Pack(pack.kind, tuple(_biased(p) for p in pack.parts), pack.groups)


_NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.|\Z)")
_GROUPED = re.compile(r"((?:.*\.)?linear_fc[12]\.(?:weight|bias))([0-9]+)", re.DOTALL)
_HOLE = re.compile(r"\*|\{e\}")
_ANY = 987_654_321  # stands for any number


@lru_cache(maxsize=1 << 17)
def numbers(name: str) -> tuple[str, tuple[int, ...]]:
    """Split a name into its form and its numbers: ``a.3.b`` is ``a.#.b`` and ``(3,)``.

    Numbers stand alone between dots, or at the end of grouped experts' weights (TransformerEngine):
    ``linear_fc1.weight3``.
    """
    text = _NUMBER.split(name)  # what is between numbers, and the numbers
    found = text[1::2]
    if "linear_fc" in text[-1] and (grouped := _GROUPED.fullmatch(text[-1])) is not None:
        text[-1] = f"{grouped[1]}#"
        found.append(grouped[2])
    return "#".join(text[::2]), tuple(map(int, found))


@lru_cache(maxsize=1 << 14)
def holes(name: str) -> tuple[str, tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return the form of a table's name, which of its numbers are holes, and the others by their place."""
    count = len(_HOLE.findall(name))
    shape, values = numbers(fill_in(name, (_ANY,) * count))
    at = tuple(i for i, value in enumerate(values) if value == _ANY)
    return shape, at, tuple((i, value) for i, value in enumerate(values) if value != _ANY)


def form(name: str) -> str:
    """Return the form of a table's name: ``a.*.b`` is ``a.#.b``."""
    return _HOLE.sub("#", name)


@lru_cache(maxsize=1 << 17)
def fill_in(name: str, values: tuple[int, ...]) -> str:
    """Put numbers into the ``*`` and ``{e}`` of a table's name, in order."""
    text, count = _filling(name)
    return text % values[:count]


@lru_cache(maxsize=1 << 14)
def _filling(name: str) -> tuple[str, int]:
    """Return a table's name as a format of its numbers, and how many there are."""
    return _HOLE.sub("%s", name.replace("%", "%%")), len(_HOLE.findall(name))
