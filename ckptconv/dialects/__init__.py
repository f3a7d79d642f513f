"""Training frameworks' ways of naming and cutting slots; every file here is found by itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from ckptconv.dialects.base import Dialect, Line, Traits, for_reading, traits_of
from ckptconv.relations import Spec
from ckptconv.slots.entry import form, numbers

__all__ = ["Dialect", "Line", "dialects", "find_dialect", "for_reading"]


def dialects() -> list[Dialect]:
    """Return all dialects."""
    found: dict[str, Dialect] = {}
    for info in iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{info.name}")).values():
            if isinstance(value, Dialect):
                found.setdefault(value.name, value)
    return list(found.values())


def find_dialect(
    tensors: Mapping[str, Spec], arguments: str | None = None, traits: Traits | None = None
) -> Dialect:
    """Return the dialect that knows most names; of equals the one with such arguments, then the first.

    Args:
        tensors: What the ranks hold.
        arguments: Whose arguments were found beside them (`Dialect.arguments`).
        traits: What the model is like, if its names are not to tell.
    """
    like = traits if traits is not None else traits_of(tensors)
    wanted = {numbers(name)[0] for name in tensors}

    def known(dialect: Dialect) -> tuple[int, bool]:
        lines = [line for line in for_reading(dialect) if line.holds(like)]
        return len(wanted & {form(line.name) for line in lines}), dialect.arguments == arguments

    return max(dialects(), key=known)
