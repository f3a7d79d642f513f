"""List the architectures with a table, and what each can do."""

from __future__ import annotations

from ckptconv.api.spoken import spoken
from ckptconv.families import FAMILIES, Family
from ckptconv.records import dataclass
from ckptconv.slots.pack import leaves

__all__ = ["Architectures", "architectures"]


@dataclass(frozen=True, slots=True)
class Architectures:
    """Describe what is known of a family's models.

    Attributes:
        family: Name for ``--family``.
        model_types: Values of ``model_type`` in config.json.
        config: Whether config.json can be built from training arguments: ``found`` where they and the tensors
            tell the family, ``named`` where they have to name it, ``given`` where ``--config`` is needed.
        mtp: Whether layers for multi-token prediction have a place.
        parts: What its models have beside a language model, by the frameworks' names.
        dialects: Whose names its models can have, beside Hugging Face's: those with a place for every tensor.
            None where the language model inside may be of any family: its own count.
    """

    family: str
    model_types: tuple[str, ...]
    config: str
    mtp: bool
    parts: tuple[str, ...]
    dialects: tuple[str, ...]


def architectures() -> tuple[Architectures, ...]:
    """Return all families, those of plug-ins too, by name."""
    return tuple(_about(f) for f in sorted(FAMILIES, key=lambda f: f.name) if f.entries or f.text)


def _about(family: Family) -> Architectures:
    named = family.template is not None and family.template.by_name
    return Architectures(
        family=family.name,
        model_types=family.model_types,
        config="given" if family.template is None else "named" if named else "found",
        mtp=any(slot.startswith("mtp.") for e in family.entries for slot in leaves(e.pack)),
        parts=tuple(dict.fromkeys(p.name for p in family.parts)),
        dialects=spoken(family),
    )
