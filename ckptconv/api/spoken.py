"""Tell in which dialects the models of a family can be, from the tables of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache

from ckptconv.dialects import DIALECTS, Dialect
from ckptconv.families import Family
from ckptconv.slots import Entry, Words, template
from ckptconv.slots.words import beginnings, block, conditions

__all__ = ["group_of", "places", "spoken"]

# Blocks of which a layer has one each.
_MIXERS, _FEEDS = ("attn", "mla", "csa", "hca", "gdn", "kda", "ssm", "conv"), ("mlp", "moe")


def spoken(family: Family) -> tuple[str, ...]:
    """Return the groups of dialects with a place for every slot that all models of a family have."""
    if not family.entries:
        return ()
    return _speaking(frozenset(_slots(family)))


@cache
def _speaking(slots: frozenset[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(group_of(d) for d in DIALECTS if places(d, slots)))


def group_of(dialect: Dialect) -> str:
    """Return the word for a dialect and those whose names begin alike: ``core`` of ``core-te``."""
    first = dialect.name.partition("-")[0]
    alike = Counter(d.name.partition("-")[0] for d in DIALECTS)
    return first if alike[first] > 1 else dialect.name


def forms(dialect: Dialect) -> tuple[tuple[str, ...], ...]:
    """Return the forms a dialect may have, none and each alone: experts one by one, projections fused."""
    slots = {s.partition("*.")[2] or s for line in dialect.lines for s in line.slots}
    told = {w for s in slots for w in beginnings(s)}
    asked = {w.removeprefix("any.") for line in dialect.lines for w, _ in conditions(line.when or "")}
    return (), *((word,) for word in sorted(asked - told - {"", "mtp"}))


def places(dialect: Dialect, slots: Collection[str]) -> bool:
    """Whether a dialect, in one of its forms, has a place for all these slots."""
    known = {s for line in dialect.lines for s in line.slots}
    if not known.issuperset(map(template, slots)):
        return False
    return any(not dialect.table(Words.of_slots(slots, f)).holding(slots)[1] for f in forms(dialect))


def _slots(family: Family) -> Iterator[str]:
    """Yield the slots of a small model of a family whose config says nothing: a layer of each kind."""
    embed = {w for e in family.entries if e.pack == "embed" for w, on in conditions(e.when or "") if on}
    flags = family.flagged({})
    entries = [e for e in family.entries if not (e.copy or _is_bias(e) or e.slots[0].startswith("mtp."))]
    blocks = {b for e in entries for s in e.slots if (b := block(s.partition("*.")[2]))}
    rest = blocks - {*_MIXERS, *_FEEDS}
    mixers, feeds = ([b for b in some if b in blocks] or [""] for some in (_MIXERS, _FEEDS))
    layers = [frozenset({mixer, feed, *rest}) for mixer in mixers for feed in feeds]
    told = (flags.told or frozenset()) | blocks
    for i, layer in enumerate(layers):
        words = Words(flags.model | embed | layer, told=told)
        for slot in (s for e in entries if words.holds(e.when) for s in e.slots):
            kind, layered, inner = slot.partition("*.")
            if not layered:
                yield slot
            elif block(inner) in layer | {""}:
                yield from {f"{kind}{i}.{inner.replace('{e}', str(e))}" for e in range(2)}


def _is_bias(entry: Entry) -> bool:
    """Whether a model is complete without an entry, and computes the same but for what is added."""
    return entry.optional and all(s.endswith(".bias") for s in entry.slots)
