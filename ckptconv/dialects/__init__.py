"""Training frameworks' ways of naming and cutting slots; every file here is found by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckptconv.dialects.base import Dialect, Line
from ckptconv.errors import UsageError
from ckptconv.plugins import Registry, within
from ckptconv.relations import Spec
from ckptconv.slots import Words
from ckptconv.slots.entry import form, numbers

__all__ = ["DIALECTS", "Dialect", "Line", "find_dialect", "find_dialect_named", "with_ranks"]


DIALECTS: Registry[Dialect] = Registry("dialects", lambda: within(__name__, Dialect), lambda: Dialect)
"""The dialects of this package, then those of installed plug-ins (entry point ``ckptconv.dialects``)."""


def with_ranks() -> list[Dialect]:
    """Return the dialects of frameworks that cut tensors over ranks."""
    return [d for d in DIALECTS if d.ranks]


def find_dialect(
    tensors: Mapping[str, Spec],
    arguments: str | None = None,
    words: Words | None = None,
    among: Iterable[Dialect] | None = None,
) -> Dialect:
    """Return the dialect that knows most names; of equals the one with such arguments, then the first.

    Args:
        tensors: What the checkpoint holds.
        arguments: Whose arguments were found beside them (`Dialect.arguments`).
        words: What the model is like, if its names are not to tell.
        among: The dialects it can be: those with ranks if none are given.
    """
    wanted = {numbers(name)[0] for name in tensors}

    def known(dialect: Dialect) -> tuple[int, bool]:
        forms = {form(line.name) for line in dialect.lines}
        if wanted & forms:
            kinds = list((words or dialect.told(tensors)).kinds())
            held = [line for line in dialect.lines if any(kind.holds(line.when) for kind in kinds)]
            forms = {form(line.name) for line in held}
        beside = [(p.prefix, p.table.entries) for p in dialect.parts if p.table is not None]
        forms |= {form(f"{prefix}{entry.name}") for prefix, entries in beside for entry in entries}
        return len(wanted & forms), dialect.arguments == arguments

    best = (len(wanted), arguments is not None)
    found: tuple[tuple[int, bool], Dialect] | None = None
    for dialect in (d for d in DIALECTS if d.ranks) if among is None else among:
        score = known(dialect)
        if found is None or score > found[0]:
            found = score, dialect
        if score == best:  # the rest need not be asked, nor loaded
            break
    if found is None:
        raise ValueError("no dialect is asked")
    return found[1]


def find_dialect_named(name: str) -> Dialect:
    """Return the dialect of a framework with ranks.

    Raises:
        UsageError: if there is none of this name.
    """
    found = {d.name: d for d in with_ranks()}
    if name not in found:
        raise UsageError(f"no dialect {name!r}", hint=f"dialects: {', '.join(found)}")
    return found[name]
