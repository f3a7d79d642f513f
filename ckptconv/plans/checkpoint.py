"""Define what every reader returns: a checkpoint as named tensors related to the files' bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from ckptconv.containers.stored import Stored
from ckptconv.dtypes import DType
from ckptconv.facts.value import Fact
from ckptconv.places.files import FileStamp
from ckptconv.plans.plan import AssetFile
from ckptconv.plans.shown import Shown
from ckptconv.records import dataclass
from ckptconv.relations import Relation, Spec
from ckptconv.relations.terms import Terms
from ckptconv.slots import ANY, Table, Words

__all__ = ["Checkpoint", "Note", "Quantised", "Weights", "beside_of", "settled"]

Weights = Literal["master", "model"]


@dataclass(frozen=True, slots=True)
class Note:
    """Tell the user something about a checkpoint: ``info``, a ``guess`` that was made, or a ``warning``."""

    level: Literal["info", "guess", "warning"]
    text: str


@dataclass(frozen=True, slots=True)
class Quantised:
    """Say how a checkpoint's weights are quantised, or that they were.

    Attributes:
        kinds: The kinds of codes, with how many weights have them.
        members: The tensors each weight is made of, by its name; none once they are values, or if the layout
            is not known.
        decoded: Whether the weights are values, so that config.json must not speak of codes.
        marks: Files beside the weights that speak of the codes, as they are.
        method: Who quantised it, as its files say.
        values: The weights as values.
    """

    kinds: tuple[str, ...]
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decoded: bool = False
    marks: tuple[AssetFile, ...] = ()
    method: str = ""
    values: Mapping[str, Spec] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What it is, for people."""
        return f"quantised: {', '.join(self.kinds)}"


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoint(Shown):
    """Describe a checkpoint from its metadata alone.

    Attributes:
        root: The folder (or file) the user may name; assets are looked for here.
        data: The folder the weights lie in (the tag folder); equal to ``root`` where there is none.
        producer: Who wrote it, for example ``deepspeed``.
        format: The layout in words, for example ``ZeRO stage 3``.
        weights: Which weights ``relation`` reaches.
        versions: Versions found in the files, by package.
        layout: Parallel sizes and the like, by name.
        iteration: Training step, where known.
        stored: The tensors as the files hold them, by the names of the relation's left side.
        relation: Stored tensors to named tensors. A left and a right spec of unlike dtype is a cast. A pair
            with ``left_copy`` is compared with what is written, after rounding to its own dtype.
        via: Tensors that are rounded to a dtype on the way, whatever dtype they are written in.
        aliases: Names that share another tensor's data (tied weights), alias to kept name.
        buffers: Names that are buffers, not parameters.
        files: Every file the relation reads, as it was when it was opened.
        left_out: What the files hold beside the weights, in bytes by kind.
        unresolved: Parameters the files name without holding their data. A config may tell they are tied;
            otherwise they are an error.
        notes: What a user should know.
        arguments: Training arguments as simple values, where the files hold them.
        facts: What files of the producer's own say of the model, beside or in place of ``arguments``.
        near: Further folders where files beside the weights are looked for.
        table: Where the tensors' names are looked up as slots; None where they are Hugging Face's own.
        words: What the names tell of the model and its layers.
        strange: Tensors the table has no name for.
        ranks: The files of model-parallel ranks by the names of their folders.
        stages: The layers of each pipeline stage by its number, by ``stage.chunk`` where it has chunks.
        config: What config.json is to say where there is none beside, or it does not say it.
        quantised: How its weights are quantised, or that they were; None if nobody speaks of that.
        pinned: Names that keep their dtype whatever the others are rounded to: training states.
        terms: What is added to tensors, by their names: other tensors of the relation, which are no weights.
        complete: Whether such a source always holds all of a model, so that what is missing was lost.
        settle: Gives the tensors the meaning that names and shapes leave open (how they are packed, which are
            no weights), where a producer leaves any; see `settled`.
    """

    root: Path
    data: Path
    producer: str
    format: str
    weights: Weights
    stored: Mapping[str, Stored]
    relation: Relation
    files: tuple[FileStamp, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    iteration: int | None = None
    via: Mapping[str, DType] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    left_out: Mapping[str, int] = field(default_factory=dict)
    unresolved: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    near: tuple[Path, ...] = ()
    table: Table | None = None
    words: Words = ANY
    strange: tuple[str, ...] = ()
    ranks: Mapping[str, Path] = field(default_factory=dict)
    stages: Mapping[str, Sequence[int]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    quantised: Quantised | None = None
    pinned: frozenset[str] = frozenset()
    terms: Terms = field(default_factory=dict)
    complete: bool = False
    settle: Callable[[Checkpoint], Checkpoint] | None = None

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        return {
            "root": self.root,
            "producer": self.producer,
            "format": self.format,
            "step": self.iteration,
            "layout": ", ".join(f"{k} {v}" for k, v in self.layout.items()),
            "weights": self.weights,
            "tensors": f"{len(self.relation.right):,}",
            "files": f"{len(self.files):,}",
        }

    @property
    def tensors(self) -> Mapping[str, Spec]:
        """The named tensors with shape and dtype, in the producer's order."""
        return self.relation.right


def settled(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose tensors mean what they mean to a model; as it is where nothing is open.

    Raises:
        CkptconvError: as the producer's reader does.
    """
    return checkpoint if checkpoint.settle is None else checkpoint.settle(checkpoint)


def beside_of(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return the folders where files beside the weights are looked for, nearest first."""
    data = checkpoint.data if checkpoint.data.is_dir() else checkpoint.data.parent
    return tuple(dict.fromkeys((checkpoint.root, data, *checkpoint.near)))
