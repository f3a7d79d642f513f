"""Hold what a verification found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from math import isfinite
from typing import Any, Literal

from ckptconv.errors import CkptconvError
from ckptconv.numbers.sizes import size_text
from ckptconv.plans.shown import Shown, count
from ckptconv.records import dataclass

__all__ = ["FileDigest", "Kind", "Logits", "Mismatch", "Place", "Proof", "Result"]

Kind = Literal["value", "replica", "missing", "unexpected", "shape", "dtype", "metadata", "asset", "logits"]


@dataclass(frozen=True, slots=True)
class Place:
    """Say where an element lies: the stored tensor (its name holds the rank), the file, the byte."""

    tensor: str
    file: str
    byte: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Name one thing that is not as it must be.

    Attributes:
        kind: What differs: values, copies of one tensor, names, shapes, types, files beside the weights.
        tensor: The tensor as it is written, or the file for what is of no tensor.
        text: What is wrong, in words.
        index: The first element that differs.
        count: Elements that differ.
        largest: The largest absolute difference of two finite values among them; None if there is none.
        source: Where that first element is from.
        output: Where it lies in the output; of copies, where the one that differs lies.
        of: The model's tensors it is part of, where ``tensor`` is the name of a part of a file.
    """

    kind: Kind
    tensor: str
    text: str
    index: tuple[int, ...] | None = None
    count: int = 0
    largest: float | None = None
    source: Place | None = None
    output: Place | None = None
    of: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """Say what metadata alone proves.

    Attributes:
        pairs: Boxes that the two sides share.
        complete: Every element of both sides is accounted for exactly once.
        invertible: The way there and back is the identity, on either side.
        one_way: What has no inverse, and is computed again instead: sums, rounding.
        seconds: How long it took.
    """

    pairs: int
    complete: bool
    invertible: bool
    one_way: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Hold the size of a file in bytes, and its digests in hexadecimal digits.

    Attributes:
        size: Bytes of the file.
        xxh3: XXH3-128.
        sha256: SHA-256; None where it was not asked for.
    """

    size: int
    xxh3: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Logits:
    """Say how the model ran, or why it could not.

    Attributes:
        prompt: The token ids it was given.
        dtype: The type it ran in.
        largest: The largest difference to the logits of the reference; None without one.
        tolerance: The most it may be.
        error: Why there are no logits; None where there are.
    """

    prompt: tuple[int, ...] = ()
    dtype: str = ""
    largest: float | None = None
    tolerance: float | None = None
    error: CkptconvError | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Result(Shown):
    """Hold the outcome of a verification.

    Attributes:
        source: The checkpoint converted.
        out: What it was converted to; None where only the source was looked at.
        plan: Digest of the plan that was compared.
        proof: What metadata proves.
        tensors: Tensors compared (read, without an output).
        bytes: Their bytes.
        replicas: Copies in the source that were compared.
        replica_bytes: Their bytes.
        casts: What was rounded or widened on the way.
        mismatches: All that differs.
        notes: ``(level, text)`` for people.
        files: Digests of the output's weight files, where they were asked for.
        logits: How the model ran, where that was asked for.
        seconds: How long all took.
        names: The tensors of the plan.
        origin: What is known of where the weights are from: ``producer``, ``format``, ``step``.
    """

    source: str
    out: str | None
    plan: str
    proof: Proof
    tensors: int
    bytes: int
    replicas: int
    replica_bytes: int
    casts: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]
    notes: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    logits: Logits | None = None
    seconds: float = 0.0
    names: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.mismatches

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        wrong = self.mismatches
        return {
            "ok": self.ok,
            "mismatches": f"{len(wrong):,}, the first: {wrong[0].tensor} {wrong[0].text}" if wrong else None,
            "source": self.source,
            "out": self.out,
            "compared": f"{count(self.tensors, 'tensor')}, {size_text(self.bytes)}",
            "copies": count(self.replicas, "tensor") if self.replicas else None,
            "logits": None if self.logits is None else self.logits.error or "as they must be",
            "plan": self.plan[:12],
            "seconds": f"{self.seconds:.1f}",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "ok": self.ok,
            "source": self.source,
            "out": self.out,
            "digest": self.plan,
            "proof": {
                "pairs": self.proof.pairs,
                "complete": self.proof.complete,
                "invertible": self.proof.invertible,
                "one_way": list(self.proof.one_way),
                "seconds": round(self.proof.seconds, 3),
            },
            "tensors": self.tensors,
            "bytes": self.bytes,
            "replicas": self.replicas,
            "replica_bytes": self.replica_bytes,
            "casts": list(self.casts),
            "seconds": round(self.seconds, 3),
            "mismatches": [_mismatch(m) for m in self.mismatches],
            "logits": None if self.logits is None else _logits(self.logits),
            "notes": [{"level": level, "text": text} for level, text in self.notes],
        }


def _mismatch(found: Mismatch) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "tensor": found.tensor,
        "of": found.of,
        "text": found.text,
        "index": None if found.index is None else list(found.index),
        "count": found.count,
        "largest": _number(found.largest),
        "source": _place(found.source),
        "output": _place(found.output),
    }


def _place(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else {"tensor": place.tensor, "file": place.file, "byte": place.byte}


def _logits(logits: Logits) -> dict[str, Any]:
    return {
        "prompt": list(logits.prompt),
        "dtype": logits.dtype,
        "largest": _number(logits.largest),
        "tolerance": logits.tolerance,
        "error": None if logits.error is None else logits.error.message,
    }


def _number(value: float | None) -> float | None:
    """Return what JSON can hold."""
    return value if value is not None and isfinite(value) else None
