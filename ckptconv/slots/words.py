"""Say in words what a model and its layers are like, and whether a line of a table counts for one of them.

These words are what conditions (`Entry.when`) consist of, in families and dialects alike:

- a slot, or what slots begin with, without the layer and the expert's number: ``mla``, ``moe``,
  ``attn.gate``, ``moe.experts.gate``. It holds of a layer that has such slots;
- ``any.`` and such a word: some layer of the model has them (``any.moe``);
- ``family.`` and a family's name: in a dialect, once the config is known (`of_family`);
- every other word speaks of the whole model: in a family it is a key of config.json that is set, in a dialect
  one of the forms it has (``sequential``, ``qkv_concat``), which names tell or the layout that is asked for.

Where a word is not told (`Words.told`), conditions on it count either way: names tell the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace
from functools import lru_cache

from ckptconv.records import dataclass
from ckptconv.slots.shapes import place_of

__all__ = ["ANY", "Words", "beginnings", "block", "conditions", "of_family"]


@dataclass(frozen=True, slots=True)
class Words:
    """Hold the words that are true.

    Attributes:
        model: Those of the whole model.
        layers: Those of each layer: ``layers.3``, or ``mtp.0`` of one for multi-token prediction.
        told: The words these speak of; None if of all.
    """

    model: frozenset[str] = frozenset()
    layers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    told: frozenset[str] | None = None

    def holds(self, when: str | None, layer: str = "") -> bool:
        """Whether a condition is met: all of its words hold, and none of those that ``!`` negates.

        Args:
            when: The condition; None is always met.
            layer: The layer it is about, empty outside of layers.
        """
        if when is None:
            return True
        here = self.layers.get(layer, _NONE)
        for word, wanted in conditions(when):
            if self.told is not None and word not in self.told:
                continue
            if (word in here or word in self.model) is not wanted:
                return False
        return True

    @property
    def names(self) -> frozenset[str]:
        """All words that hold of the model or of some layer."""
        return self.model.union(*self.layers.values())

    def beside(self, words: Collection[str]) -> Words:
        """Return these with further words of the whole model."""
        return replace(self, model=self.model | frozenset(words)) if words else self

    def about(self, told: Collection[str]) -> Words:
        """Return these as speaking of some words alone."""
        return replace(self, told=frozenset(told))

    def kinds(self) -> Iterable[Words]:
        """Yield these once for every kind of layer, as the words of a model."""
        for layer in {frozenset(words) for words in self.layers.values()} or {_NONE}:
            yield Words(self.model | layer, {}, self.told)

    @staticmethod
    def joined(parts: Iterable[Words]) -> Words:
        """Join words about the same things, of different layers or not."""
        model, layers, told = set[str](), dict[str, frozenset[str]](), set[str]()
        of_all = False
        for part in parts:
            model |= part.model
            for layer, words in part.layers.items():
                layers[layer] = layers.get(layer, _NONE) | words
            told |= part.told or _NONE
            of_all = of_all or part.told is None
        return Words(frozenset(model), layers, None if of_all else frozenset(told))

    @staticmethod
    def of_slots(slots: Iterable[str], forms: Collection[str] = ()) -> Words:
        """Return the words that the slots of a model tell.

        Args:
            slots: Their full names.
            forms: Words of the model beside.
        """
        layers: dict[str, set[str]] = {}
        model = set(forms)
        alike = {place_of(slot)[:2]: slot for slot in slots}  # of a layer's experts one
        for slot in alike.values():
            kind, _, rest = slot.partition(".")
            if kind in ("layers", "mtp") and rest:
                number, _, rest = rest.partition(".")
                layers.setdefault(f"{kind}.{number}", set()).update(beginnings(rest))
                if kind == "mtp":
                    model.add(kind)
            else:
                model.update(beginnings(slot))
        model |= {f"any.{word}" for words in layers.values() for word in words}
        return Words(frozenset(model), {layer: frozenset(words) for layer, words in layers.items()})


_NONE: frozenset[str] = frozenset()
ANY = Words(told=_NONE)
"""Knows nothing, so that every line counts."""


def of_family(name: str) -> str:
    """Return the word that holds in a dialect of the models of one family, which only their config tells."""
    return f"family.{name}"


@lru_cache(maxsize=1 << 10)
def conditions(when: str) -> tuple[tuple[str, bool], ...]:
    """Return the words of a condition, each with whether it is to hold."""
    return tuple((word.lstrip("!"), not word.startswith("!")) for word in when.split())


def block(slot: str) -> str:
    """Return the part of a layer a slot belongs to: ``moe`` of ``moe.router``; empty for norms between them.

    Args:
        slot: Its name, without the layer.
    """
    first, _, rest = slot.partition(".")
    return first if rest not in ("", "bias") else ""


@lru_cache(maxsize=1 << 12)
def beginnings(slot: str) -> tuple[str, ...]:
    """Return what a slot's name begins with, the expert's number left out: ``moe``, ``moe.experts``, ...

    Args:
        slot: Its name, without the layer.
    """
    parts = [p for p in slot.split(".") if p != "{e}" and not p.isdigit()]
    return tuple(".".join(parts[: i + 1]) for i in range(len(parts)))
