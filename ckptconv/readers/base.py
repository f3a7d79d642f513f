"""Define what every reader returns: a checkpoint as named tensors related to the files' bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ckptconv.dtypes import DType
from ckptconv.graph import Box, Drop, Pair, Relation, Spec
from ckptconv.slots import Table
from ckptconv.storage.base import FileTensor
from ckptconv.storage.files import FileStamp, stamp
from ckptconv.storage.stored import Stored, dense_axes, from_file_tensor

__all__ = ["Checkpoint", "GraphBuilder", "Note", "ReadOptions", "Reader", "Weights"]

Weights = Literal["master", "model"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Say which of a checkpoint's weights are wanted.

    Attributes:
        weights: fp32 masters or the 16-bit weights the model ran with; ``None`` is the producer's default.
        tag: The DeepSpeed tag to read instead of the one in ``latest``.
        strategy: MindSpore's strategy file, or a folder of them, instead of those beside the checkpoint.
        iteration: Megatron's iteration instead of the newest.
        sizes: Parallel sizes (``tp``, ``pp``, ``vpp``, ``ep``, ``etp``) to check, or to fill in where the
            checkpoint does not say them.
        traits: What the model is like (`Checkpoint.traits`), where the names of an adapter alone do not tell.
        states: Whether MindSpore's optimizer and training states are read as tensors too.
    """

    weights: Weights | None = None
    tag: str | None = None
    strategy: Path | None = None
    iteration: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    traits: frozenset[str] | None = None
    states: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Tell the user something about a checkpoint: ``info``, a ``guess`` that was made, or a ``warning``."""

    level: Literal["info", "guess", "warning"]
    text: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
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
        table: Where the tensors' names are looked up as slots; None where they are Hugging Face's own.
        traits: What the names tell of the model (words of `dialects.base.Line.when`).
        strange: Tensors the table has no name for.
        ranks: The files of model-parallel ranks by the names of their folders.
        stages: The layers of each pipeline stage by its number, by ``stage.chunk`` where it has chunks.
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
    table: Table | None = None
    traits: frozenset[str] = frozenset()
    strange: tuple[str, ...] = ()
    ranks: Mapping[str, Path] = field(default_factory=dict)
    stages: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, Spec]:
        """The named tensors with shape and dtype, in the producer's order."""
        return self.relation.right


@dataclass(frozen=True, slots=True)
class Reader:
    """Tie a producer's name to the functions that recognise and open its checkpoints.

    Attributes:
        name: The producer.
        recognise: Whether a path looks like one of its checkpoints; cheap, looks at names only.
        open: Read the metadata.
    """

    name: str
    recognise: Callable[[Path], bool]
    open: Callable[[Path, ReadOptions], Checkpoint]


class GraphBuilder:
    """Collect stored tensors, named tensors and the pairs between them."""

    def __init__(self) -> None:
        self.stored: dict[str, Stored] = {}
        self.right: dict[str, Spec] = {}
        self.pairs: list[Pair] = []
        self.left_only: list[Drop] = []
        self._stamps: dict[str, FileStamp] = {}

    def store(self, key: str, stored: Stored) -> None:
        """Add a stored tensor under a new key."""
        if key in self.stored:
            raise AssertionError(f"stored twice: {key}")
        self.stored[key] = stored
        for extent in stored.extents:
            if extent.path not in self._stamps:
                self._stamps[extent.path] = stamp(extent.path)

    def name(self, name: str, shape: tuple[int, ...], dtype: DType) -> None:
        """Declare a named tensor."""
        self.right[name] = Spec(shape, dtype.name)

    def whole(
        self, key: str, tensor: FileTensor, name: str, *, dtype: DType | None = None, copy: bool = False
    ) -> None:
        """Relate a tensor of a file to a named tensor one to one.

        Args:
            key: Name for the stored side.
            tensor: Where it lies.
            name: The named tensor; declared here unless ``copy``.
            dtype: Its dtype if the value is cast.
            copy: Whether it repeats what another pair provides and is to be compared.
        """
        stored = from_file_tensor(tensor)
        self.store(key, stored)
        if not copy:
            self.name(name, tensor.shape, dtype or tensor.dtype)
        if tensor.numel == 0:
            return
        left = (
            Box.strided(key, 0, zip(tensor.shape, tensor.stride, strict=True))
            if dense_axes(tensor)
            else Box.whole(key, tensor.shape)
        )
        self.pairs.append(Pair(left, Box.whole(name, tensor.shape), left_copy=copy))

    def relation(self) -> Relation:
        """Return the finished relation, checked: every element on either side is accounted for."""
        left = {k: Spec(s.shape, s.dtype.name) for k, s in self.stored.items()}
        relation = Relation(left, self.right, tuple(self.pairs), tuple(self.left_only))
        relation.check()
        return relation

    def touch(self, path: str | Path) -> None:
        """Remember a file that was read for its metadata only."""
        self._stamps.setdefault(str(path), stamp(path))

    @property
    def files(self) -> tuple[FileStamp, ...]:
        """Stamps of all files that were read."""
        return tuple(self._stamps.values())
