"""Hold a quantised matrix as values: stored nowhere, computed of codes and scales when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from ckptconv.containers.stored import Extent, Stored
from ckptconv.dtypes import DType
from ckptconv.records import dataclass

if TYPE_CHECKING:
    from ckptconv.numbers.codecs import Params

__all__ = ["Decoded"]


@dataclass(frozen=True, slots=True)
class Decoded(Stored):
    """Hold values as if a file did: float32, or rounded to ``dtype``.

    Attributes:
        name: Its name for people.
        codec: Name of the codec.
        params: What that has to know; the matrix has ``rows`` and ``columns`` there, ``shape`` as many
            elements.
        operands: What the values are made of by its role, each as a matrix of rows and columns.
        names: The names of those tensors by their role.
        kind: How it is quantised, in words.
    """

    name: str = ""
    codec: str = ""
    params: Params = field(default_factory=dict)
    operands: Mapping[str, Stored] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    def spans(self, lo: int, hi: int) -> Iterator[tuple[str, int, int]]:
        """Yield where elements ``lo`` up to ``hi`` are from: about so many of the codes, then all scales."""
        codes, numel = self.operands["codes"], max(self.numel, 1)
        yield from codes.spans(lo * codes.numel // numel, -(-hi * codes.numel // numel))
        for role, stored in self.operands.items():
            if role != "codes":
                yield from stored.spans(0, stored.numel)

    def rounded(self, dtype: DType) -> Decoded:
        """Return the same values rounded to a type."""
        return replace(self, dtype=dtype)

    def moved(self, path: Callable[[str], str]) -> Decoded:
        """Return the same under other paths."""
        operands = {}
        for role, stored in self.operands.items():
            extents = tuple([Extent(e.start, path(e.path), e.offset) for e in stored.extents])
            operands[role] = replace(stored, extents=extents)
        return replace(self, operands=operands, extents=operands["codes"].extents)

    def paths(self) -> set[str]:
        """Return the files it is made of."""
        return {e.path for s in self.operands.values() for e in s.extents}

    def describe(self) -> list[Any]:
        """Return all that decides the values, as JSON-ready data."""
        made = {
            role: [s.dtype.name, s.shape, [(e.start, e.path, e.offset) for e in s.extents]]
            for role, s in self.operands.items()
        }
        return [self.codec, dict(self.params), made]
