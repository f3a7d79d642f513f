"""Hold how two checkpoints differ."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, prod
from typing import Any

from ckptconv.plans.shown import Shown
from ckptconv.records import dataclass
from ckptconv.relations import Spec

__all__ = ["Diff", "Same", "TensorDiff"]


@dataclass(frozen=True, slots=True)
class Same:
    """Name a tensor that both sides have, and what each side calls it."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """Say how one tensor differs.

    Elements are equal if their values are; two NaNs are equal, and so are 0.0 and -0.0.

    Attributes:
        name: The tensor.
        shape: Its shape on side A.
        shape_b: Its shape on side B; nothing was compared if it is another.
        dtype: Its element type on side A.
        dtype_b: Its element type on side B.
        count: Elements that differ.
        beyond: Those of them that differ by more than the tolerances allow.
        largest: The largest absolute difference that is finite.
        mean: The mean absolute difference of all elements whose difference is finite.
        relative: The Euclidean norm of the difference over that of B's values, infinite if those are 0.
        index: Where the largest difference is; the first unbounded one if there is no other.
        values: The values there, of A and of B.
        unbounded: Elements that are NaN or infinite on one side, and something else on the other.
        nans: NaNs on side A and on side B.
        bits: Elements of equal value and different bits: signed zeros, NaNs.
        conflicts: Copies of the tensor that disagree inside one of the checkpoints.
    """

    name: str
    shape: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype: str
    dtype_b: str
    count: int = 0
    beyond: int = 0
    largest: float = 0.0
    mean: float = 0.0
    relative: float = 0.0
    index: tuple[int, ...] | None = None
    values: tuple[Any, Any] | None = None
    unbounded: int = 0
    nans: tuple[int, int] = (0, 0)
    bits: int = 0
    conflicts: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One of ``shape``, ``differs``, ``within`` (the tolerances), ``equal``."""
        if self.shape != self.shape_b:
            return "shape"
        if self.beyond or self.conflicts:
            return "differs"
        return "within" if self.count else "equal"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data; what JSON has no number for is a string."""
        shapes = [list(self.shape), list(self.shape_b)]
        found = {
            "name": self.name,
            "verdict": self.verdict,
            "shape": shapes[0],
            "dtype": self.dtype,
            "dtype_b": self.dtype_b,
        }
        if self.shape != self.shape_b:
            return {**found, "shape_b": shapes[1]}
        return {
            **found,
            "elements": prod(self.shape),
            "differing": self.count,
            "beyond": self.beyond,
            "largest": _number(self.largest),
            "mean": _number(self.mean),
            "relative": _number(self.relative),
            "index": None if self.index is None else list(self.index),
            "values": None if self.values is None else [_number(v) for v in self.values],
            "unbounded": self.unbounded,
            "nans": list(self.nans),
            "bits_only": self.bits,
            "conflicts": list(self.conflicts),
        }


@dataclass(frozen=True, slots=True, repr=False)
class Diff(Shown):
    """Hold how two checkpoints differ.

    Attributes:
        a: Where the one is.
        b: Where the other is.
        only_a: Tensors that A has alone.
        only_b: Tensors that B has alone.
        tensors: Those that both have, what differs most first.
        atol: Absolute difference allowed.
        rtol: Difference allowed relative to B's value.
        bytes: Bytes that were compared, of both sides.
        seconds: How long it took.
        notes: ``(level, text)`` for people.
    """

    a: str
    b: str
    only_a: Mapping[str, Spec]
    only_b: Mapping[str, Spec]
    tensors: tuple[TensorDiff, ...]
    atol: float
    rtol: float
    bytes: int
    seconds: float
    notes: tuple[tuple[str, str], ...] = ()

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        found = ", ".join(f"{n:,} {word}" for word, n in self.counts().items() if n)
        return {"ok": self.ok, "a": self.a, "b": self.b, "tensors": found, "seconds": f"{self.seconds:.1f}"}

    @property
    def ok(self) -> bool:
        """Whether all is equal within the tolerances; element types alone do not count."""
        return (
            not self.only_a
            and not self.only_b
            and all(t.verdict in ("equal", "within") for t in self.tensors)
        )

    def counts(self) -> dict[str, int]:
        """Return how many tensors there are of each kind of outcome."""
        found = {"equal": 0, "within": 0, "differs": 0, "shape": 0}
        for t in self.tensors:
            found[t.verdict] += 1
        dtypes = sum(t.dtype != t.dtype_b for t in self.tensors)
        return {**found, "dtype": dtypes, "only_a": len(self.only_a), "only_b": len(self.only_b)}

    def to_dict(self, *, everything: bool = True) -> dict[str, Any]:
        """Return the outcome as JSON-ready data; without ``everything`` equal tensors are left out."""
        kept = [t for t in self.tensors if everything or t.verdict != "equal" or t.dtype != t.dtype_b]
        return {
            "ok": self.ok,
            "a": self.a,
            "b": self.b,
            "atol": self.atol,
            "rtol": self.rtol,
            "counts": self.counts(),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "only_a": _specs(self.only_a),
            "only_b": _specs(self.only_b),
            "tensors": [t.to_dict() for t in kept],
            "notes": [{"level": level, "text": text} for level, text in self.notes],
        }


def _specs(found: Mapping[str, Spec]) -> list[dict[str, Any]]:
    return [{"name": n, "shape": list(s.shape), "dtype": s.dtype} for n, s in found.items()]


def _number(value: Any) -> Any:
    if isinstance(value, complex):
        return str(value)
    return value if not isinstance(value, float) or isfinite(value) else str(value)
