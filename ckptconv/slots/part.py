"""Name the parts of a larger model beside its language model: those that see or hear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptconv.records import dataclass

if TYPE_CHECKING:
    from ckptconv.slots.table import Table

__all__ = ["Part", "part_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """Say what the tensors of a part are called.

    Attributes:
        name: The part's own; its slots are ``visual/layers.3.attn.q``.
        prefix: What the names of its tensors begin with.
        table: Where the rest of a name is looked up; None where it passes through and is the slot itself.
    """

    name: str
    prefix: str
    table: Table | None = None


def part_of(slot: str) -> str:
    """Return the part a slot is of, empty for the language model."""
    return slot.partition("/")[0] if "/" in slot else ""
