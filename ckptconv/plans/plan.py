"""Hold a plan: every file to be written, and for every byte where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from ckptconv.containers.base import FileLayout
from ckptconv.containers.decoded import Decoded
from ckptconv.containers.stored import Stored
from ckptconv.dtypes import DType
from ckptconv.numbers.sizes import size_text
from ckptconv.places.files import FileStamp
from ckptconv.plans.shown import Shown, count
from ckptconv.records import dataclass
from ckptconv.relations.relation import Relation
from ckptconv.relations.terms import Terms, check_terms, operands, term_dict

__all__ = ["AssetFile", "OutFile", "Plan", "Step"]

StepKind = Literal[
    "cast",
    "decode",
    "quantise",
    "alias",
    "drop",
    "rename",
    "compare",
    "config",
    "left out",
    "lora",
    "add",
    "average",
]


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """Name a field of config.json that is written otherwise than it was found.

    Attributes:
        field: The field.
        old: Its value before, as JSON; None if it was not there.
        new: Its value as it is written, as JSON; None if it is left out.
    """

    field: str
    old: str | None
    new: str | None

    def step(self, why: str) -> Step:
        """Return the step of a plan that says so."""
        if self.new is None:
            return Step("config", f"{self.field}: {self.old} left out", why, self)
        before = "" if self.old is None else f"{self.old} -> "
        return Step("config", f"{self.field}: {before}{self.new}", why, self)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as data."""
        values = {"old": self.old, "new": self.new}
        return {"field": self.field, **{k: None if v is None else json.loads(v) for k, v in values.items()}}


@dataclass(frozen=True, slots=True)
class Step:
    """Name one thing that is not a plain copy: what it does, to what, and why."""

    kind: StepKind
    what: str
    why: str
    change: ConfigChange | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the step as JSON-ready data; one of config.json with its field and values."""
        found: dict[str, Any] = {"kind": self.kind, "what": self.what, "why": self.why}
        return found if self.change is None else {**found, **self.change.to_dict()}


@dataclass(frozen=True, slots=True)
class OutFile:
    """A weight file to be written.

    Attributes:
        name: File name inside the output folder.
        container: What its bytes are: ``safetensors``, ``bin``, ``ckpt`` or a plug-in's.
        layout: Its bytes, the tensors' data aside.
    """

    name: str
    container: str
    layout: FileLayout


@dataclass(frozen=True, slots=True)
class AssetFile:
    """A small file to be written whole: config, index, tokenizer.

    Attributes:
        name: Path inside the output folder.
        origin: Where its content comes from, for people.
        content: Its bytes.
        derived: Whether they were made here rather than taken over from a file.
    """

    name: str
    origin: str
    content: bytes
    derived: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Plan(Shown):
    """Describe a conversion completely; made from metadata alone.

    Attributes:
        source: The checkpoint's root folder or file.
        producer: Who wrote it.
        relation: Stored tensors (left) to the tensors to be written (right).
        stored: Where the left side's bytes lie.
        casts: Dtypes a tensor's values pass through, stored dtype first, for tensors that are cast.
        files: Weight files, each with its tensors at fixed offsets.
        assets: Other files; ``config.json`` and the index come last, when all weights are there.
        steps: Everything that is not a plain copy.
        inputs: The source files as they were.
        notes: ``(level, text)`` for people.
        terms: What is added to a tensor's values: rounded once, from float32, to the dtype written. Operands
            are right tensors of the relation that lie in no file.
        origin: What is known of where the weights are from: ``producer``, ``format``, ``step``.
    """

    source: str
    producer: str
    relation: Relation
    stored: Mapping[str, Stored]
    casts: Mapping[str, tuple[DType, ...]]
    files: tuple[OutFile, ...]
    assets: tuple[AssetFile, ...] = ()
    steps: tuple[Step, ...] = ()
    inputs: tuple[FileStamp, ...] = ()
    notes: tuple[tuple[str, str], ...] = field(default=())
    terms: Terms = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse terms that do not fit.

        Raises:
            PlanError: as `check_terms` does.
        """
        if self.terms:
            parts = operands(self.terms)
            read = {n for n in self.relation.right if n not in parts}  # of a plan that writes nothing
            written = {t.name for f in self.files for t in f.layout.tensors} if self.files else read
            check_terms(self.relation.right, written, self.terms)

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        tensors = sum(len(f.layout.tensors) for f in self.files)
        files = count(len(self.files), "file")
        return {
            "source": self.source,
            "producer": self.producer,
            "writes": f"{count(tensors, 'tensor')}, {size_text(self.bytes_out)} in {files}",
            "beside": ", ".join(a.name for a in self.assets),
            "steps": ", ".join(f"{n:,} {kind}" for kind, n in Counter(s.kind for s in self.steps).items()),
            "notes": count(len(self.notes), "note") if self.notes else None,
        }

    @property
    def bytes_out(self) -> int:
        """Bytes of all weight files."""
        return sum(f.layout.size for f in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data, without the pairs (see ``relation.to_dict``)."""
        return {
            "source": self.source,
            "producer": self.producer,
            "digest": self.digest(),
            "bytes": self.bytes_out,
            "files": [
                {
                    "name": f.name,
                    "bytes": f.layout.size,
                    "tensors": [
                        {
                            "name": t.name,
                            "dtype": t.dtype.name,
                            "shape": list(t.shape),
                            "offset": t.offset,
                            "casts": [d.name for d in self.casts.get(t.name, ())],
                            "terms": [term_dict(a) for a in self.terms.get(t.name, ())],
                        }
                        for t in f.layout.tensors
                    ],
                }
                for f in self.files
            ],
            "assets": [{"name": a.name, "bytes": len(a.content), "origin": a.origin} for a in self.assets],
            "steps": [s.to_dict() for s in self.steps],
            "notes": [{"level": level, "text": text} for level, text in self.notes],
        }

    def digest(self) -> str:
        """Return a SHA-256 over all that decides the output: inputs, boxes, casts, layouts, assets."""
        h, encode = hashlib.sha256(), json.JSONEncoder(sort_keys=True).encode

        def add(*items: object) -> None:
            h.update(encode(items).encode() + b"\n")

        for i in self.inputs:
            add("input", i.path, i.size, i.mtime_ns)
        for key, s in self.stored.items():
            if isinstance(s, Decoded):
                add("decoded", key, s.dtype.name, s.shape, s.describe())
                continue
            add("stored", key, s.dtype.name, s.shape, [(e.start, e.path, e.offset) for e in s.extents])
        add("relation", self.relation.digest())
        for name, chain in sorted(self.casts.items()):
            add("cast", name, [d.name for d in chain])
        for name, terms in sorted(self.terms.items()):
            add("terms", name, [term_dict(t) for t in terms])
        for f in self.files:
            placed = [(t.name, t.dtype.name, t.shape, t.offset) for t in f.layout.tensors]
            fixed = [(at, hashlib.sha256(b).hexdigest()) for at, b in f.layout.fixed]
            add("file", f.name, f.container, f.layout.size, placed, fixed)
        for a in self.assets:
            add("asset", a.name, hashlib.sha256(a.content).hexdigest())
        return h.hexdigest()
