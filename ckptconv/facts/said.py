"""Look up what other libraries' own files say of a model, typed, each fact with where it is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptconv.errors import FormatError
from ckptconv.facts.typed import as_flag, as_number, as_whole, bounded, short
from ckptconv.facts.value import Fact

__all__ = ["Said", "first", "fixed"]

# What no key of these files states, since the library computes it in this way only.
_PLAIN = {
    "position": "rope",
    "interleaved": False,
    "norm_kind": "RMSNorm",
    "gated": True,
    "linear_bias": False,
    "activation": "silu",
    "embed_scaled": False,
    "multipliers": False,
    "partial_rotary": 1.0,
    "window": None,
}


class Said:
    """Look values of a file up, typed; each fact says where it is from."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def fact(self, key: str, kind: type = int) -> Fact | None:
        """Return what a key says; None if it says nothing.

        Raises:
            FormatError: if it is of another kind.
        """
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            return None
        origin = f"{self.path.name} {key}"
        found = {int: as_whole, float: as_number, bool: as_flag}.get(kind, lambda v: v)(value)
        if found is None or (kind is str and not isinstance(found, str)):
            raise FormatError(f"{key} is {short(value)}", where=self.path, hint="check the file")
        return Fact(found if kind in (str, bool) else bounded(found, origin), origin)

    def all(self, table: Mapping[str, tuple[str, type]]) -> dict[str, Fact]:
        """Return the facts of a table that the file states."""
        found = {name: self.fact(key, kind) for name, (key, kind) in table.items()}
        return {name: fact for name, fact in found.items() if fact is not None}


def first(folders: Sequence[Path], name: str) -> Path | None:
    """Return the first file of a name in some folders."""
    return next((f / name for f in folders if (f / name).is_file()), None)


def fixed(who: str, **more: Any) -> dict[str, Fact]:
    """Return what all models of a library compute alike."""
    return {name: Fact(value, f"all models of {who}") for name, value in {**_PLAIN, **more}.items()}
