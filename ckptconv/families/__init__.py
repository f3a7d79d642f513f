"""Find the family of a model by the ``model_type`` of its config; every file here is found by itself."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from ckptconv.families.base import Config, Family, Findings, dims, is_sparse

__all__ = ["Config", "Family", "Findings", "dims", "families", "find_family", "is_sparse"]


def families() -> Iterator[Family]:
    """Yield the families of this package, then those of plug-ins (entry point ``ckptconv.families``)."""
    seen: set[str] = set()
    for info in iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{info.name}")).values():
            if isinstance(value, Family) and value.name not in seen:  # one may import another to build on it
                seen.add(value.name)
                yield value
    from importlib.metadata import entry_points  # 25 ms, and seldom needed

    for point in entry_points(group="ckptconv.families"):
        yield point.load()


def find_family(model_type: object) -> Family | None:
    """Return the family of a ``model_type``, if there is a table for it."""
    return next((f for f in families() if model_type in f.model_types), None)
