"""Find the architectures that a checkpoint's facts and slots can be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.facts.facts import read_facts
from ckptconv.facts.value import Fact, Facts
from ckptconv.families import FAMILIES, Family, find_family
from ckptconv.families.config import same, unconsumed, unspoken
from ckptconv.families.derived import known
from ckptconv.families.template import Template
from ckptconv.slots import template as as_listed
from ckptconv.slots.words import block

__all__ = ["fitting", "is_zero_centered", "lacks_one", "nearest", "observed"]

_SEEN = "the checkpoint's tensors"
# What only few models do, so that there must be a word of it.
_ORDINARY = {"interleaved": False, "index_interleaved": False, "embed_scaled": False, "multipliers": False}


def observed(facts: Facts, slots: Collection[str]) -> dict[str, Fact]:
    """Return the facts with what the tensors show in place of what the arguments say.

    Args:
        facts: What the arguments say.
        slots: The slots of the checkpoint as tables write them: ``layers.*.attn.q.bias``.
    """
    here = {f"layers{s.removeprefix('mtp')}" if s.startswith("mtp.") else s for s in slots}
    found = dict(facts)

    def put(name: str, value: object) -> None:
        if name not in found or found[name].value != value:
            found[name] = Fact(value, _SEEN)

    ups = ("mlp.up", "mlp.down", "moe.experts.{e}.up", "moe.experts.{e}.down")
    put("linear_bias", any(f"layers.*.{up}.bias" in here for up in ups))
    put("qkv_bias", bool(here & {"layers.*.attn.q.bias", "layers.*.mla.q_a.bias", "layers.*.mla.kv_a.bias"}))
    put("o_bias", bool(here & {"layers.*.attn.o.bias", "layers.*.mla.o.bias"}))
    put("qk_norm", "layers.*.attn.q_norm" in here)
    put("output_gate", "layers.*.attn.gate" in here)
    put("sinks", "layers.*.attn.sinks" in here)
    put("embed_norm", "embed_norm" in here)
    put("post_norm", "layers.*.attn_post_norm" in here)
    put("gated", bool(here & {"layers.*.mlp.gate", "layers.*.moe.experts.{e}.gate"}))
    put(
        "norm_kind",
        "LayerNorm" if "final_norm.bias" in here else found.get("norm_kind", Fact("RMSNorm", "")).value,
    )
    if "layers.*.moe.router" in here:
        put("router_bias", "layers.*.moe.router_bias" in here)
        put("router_linear_bias", "layers.*.moe.router.bias" in here)
        put("shared_gate", "layers.*.moe.shared_gate" in here)
        if "layers.*.moe.shared.up" not in here:
            put("shared_inner", None)
    if "head" not in here:
        put("tied", True)
    elif "tied" not in found:
        put("tied", False)
    return found


def fitting(facts: Facts, slots: Collection[str], *, alone: bool = False) -> list[Family]:
    """Return the families a checkpoint can be, the most specific first.

    A ``model_type`` in the facts decides at once. Else a family fits if it has a place for every slot, every
    tensor it needs is there, and no fact speaks against it. Of families that compute the same, only the one
    that is meant if nothing is said is returned (Llama, not Phi-3, which packs the same weights otherwise).

    Args:
        facts: What the arguments say.
        slots: The slots of the checkpoint as tables write them: ``layers.*.attn.q``.
        alone: Whether it holds an adapter alone, so that tensors show nothing of the model.
    """
    kind = facts.get("model_type")
    if kind is not None and (own := find_family(kind.value)) is not None:
        return [own]
    seen = facts if alone else observed(facts, slots)
    fit = [
        (-score, family)
        for family in FAMILIES
        if family.template is not None
        and not family.template.by_name
        and (score := _score(family, family.template, seen, slots, alone=alone)) is not None
    ]
    if (said := _named(facts, [f for _, f in fit])) is not None:
        return [said]
    names = {f.name for _, f in fit}
    left = [(s, f) for s, f in fit if f.template is not None and not names & set(f.template.like)]
    return [family for _, family in sorted(left, key=lambda pair: pair[0])]


def _named(facts: Facts, fit: Sequence[Family]) -> Family | None:
    """Return the family that the model's path or hub id names, of those that compute the same."""
    path = facts.get("hf_path")
    if path is None or not isinstance(path.value, str):
        return None
    word = _letters(path.value.rstrip("/").rpartition("/")[2])
    called = {_letters(f.name.removesuffix("_text")): f for f in fit}
    return max(((n, f) for n, f in called.items() if n in word), key=lambda p: len(p[0]), default=("", None))[
        1
    ]


def _letters(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def _score(
    family: Family, template: Template, facts: Facts, slots: Collection[str], *, alone: bool
) -> int | None:
    """Return how many facts speak for a family, or None if one speaks against it."""
    if next(_against(family, template, facts, slots, alone=alone), None) is not None:
        return None
    return sum(n in facts for n in template.fixed) + (family.zero_centered and "zero_centered" in facts)


def nearest(facts: Facts, slots: Collection[str]) -> tuple[Family, list[str]] | None:
    """Return the family that the least speaks against, and what does.

    Args:
        facts: What the arguments say.
        slots: The slots of the checkpoint as tables write them: ``layers.*.attn.q``.
    """
    seen = observed(facts, slots)
    found = [
        (list(_against(family, family.template, seen, slots)), family)
        for family in FAMILIES
        if family.template is not None and not family.template.by_name
    ]
    # Of those that as little speaks against, the one that is meant if nothing is said.
    like = {name for _, f in found if f.template is not None for name in f.template.like}
    against, family = min(found, key=lambda f: (len(f[0]), f[1].name not in like), default=([], None))
    return None if family is None else (family, list(dict.fromkeys(against)))


# What people call parts of a model, by the slots and facts that show them.
_CALLED = {
    "layers.*.attn.sinks": "attention sinks",
    "layers.*.attn.gate": "an output gate of attention",
    "sinks": "attention sinks",
    "output_gate": "an output gate of attention",
}


def _called(name: str) -> str:
    """Name a slot or a fact, and what people call it."""
    word = next((w for start, w in _CALLED.items() if name.startswith(start)), None)
    return name if word is None else f"{word} ({name})"


def _against(
    family: Family, template: Template, facts: Facts, slots: Collection[str], *, alone: bool = False
) -> Iterator[str]:
    """Yield what speaks against a family: facts it does not compute, tensors without a place, or lacking."""
    flags: dict[str, object] = {}
    if (why := unspoken(template, facts)) is not None:
        yield why
    yield from unconsumed(template, facts)
    for name, value in template.fixed.items():
        try:
            fact = known(facts, name)
        except PlanError as e:
            yield e.message
            continue
        said = _ORDINARY.get(name, value) if fact is None else fact.value
        if not same(name, said, value):
            origin = f" ({fact.origin})" if fact is not None else ""
            yield f"{_called(name)}: {said}{origin}, not {value}"
    for key, words in template.keys.items():
        try:
            stated = [f.value for w in words.rstrip("?").split() if (f := known(facts, w)) is not None]
        except PlanError as e:
            yield e.message
            continue
        if any(v != stated[0] for v in stated):
            yield f"{key} cannot say all of {', '.join(words.rstrip('?').split())}: {stated}"
        if stated:
            flags[key] = stated[0]
    flags |= template.literals
    if family.zero_centered and not (facts.get("zero_centered") or Fact(False, "")).value:
        yield "norms are not stored around zero"
    tied = facts.get("tied")
    here = {s for s in slots if not (s == "head" and tied is not None and tied.value)}
    places, required = set[str](), set[str]()
    for slot, needed in _slots(family, flags, here):
        places.add(slot)
        required |= {slot} if needed else set()
    unplaced = sorted(s for s in here if s not in places and not _in_mtp(s, places))
    ahead = {s for s in unplaced if s.startswith("mtp.")}
    yield from ["no place for layers for multi-token prediction (mtp.*)"] if ahead else []
    yield from (f"no place for {_called(slot)}" for slot in unplaced if slot not in ahead)
    # Of what an adapter was trained on, only the facts tell whether there are experts.
    lacking = required - here
    if alone:
        sparse = {s for s in lacking if block(s.partition("*.")[2]) == "moe"}
        lacking = set() if "experts" in facts else sparse
    yield from (f"{_called(slot)} is not there" for slot in sorted(lacking))


def _in_mtp(slot: str, places: set[str]) -> bool:
    """Whether a layer for multi-token prediction may hold it: if others do, in a family that has such."""
    return (
        slot.startswith("mtp.")
        and "mtp.*.eh_proj" in places
        and f"layers{slot.removeprefix('mtp')}" in places
    )


def _slots(family: Family, flags: dict[str, object], here: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Yield the slots a model with these flags has, and whether it must have them.

    Of blocks that not every layer has, those that are here are complete.
    """
    words = family.flagged(flags)
    blocks = family.blocks
    some = set(blocks) if family.kinds is not None else {"mlp"} if "moe" in blocks else set()
    some -= {block(s.partition("*.")[2]) for s in here}
    for entry in family.entries:
        if not words.holds(entry.when):
            continue
        may = entry.optional or entry.copy or entry.slots[0].startswith("mtp.")
        for slot in entry.slots:
            yield as_listed(slot), not may and block(slot.partition("*.")[2]) not in some


def is_zero_centered(arguments: Mapping[str, Any], family: Family) -> bool:
    """Whether training arguments say that norms are stored without the 1 they multiply by."""
    return lacks_one(read_facts(arguments) if arguments else {}, family)


def lacks_one(facts: Mapping[str, Fact], family: Family | None) -> bool:
    """Whether a framework stores all norms without their 1: if it says so, or the family does.

    That it does not is no word to rely on: converters leave the flag as it was, whatever they write.
    """
    fact = facts.get("zero_centered")
    return (fact is not None and bool(fact.value)) or (family is not None and family.zero_centered)
