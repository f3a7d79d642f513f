"""Open checkpoints, plan conversions and carry them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptconv.dtypes import DType, numpy_dtype
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.events import Listener
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.options import Options, Report
from ckptconv.engine.run import run
from ckptconv.errors import UsageError
from ckptconv.families import Family, families, find_family
from ckptconv.folder import ConfigFound, compare, find_config, gather_assets
from ckptconv.graph import OutFile, Pair, Plan, Relation, Step
from ckptconv.naming import cast_chains, name_tensors
from ckptconv.options import ConvertOptions
from ckptconv.readers.base import Checkpoint, Note, ReadOptions, Weights
from ckptconv.readers.registry import open_checkpoint
from ckptconv.storage.base import FileLayout, Placed
from ckptconv.storage.files import SourceFiles
from ckptconv.writers.huggingface import layout_weights, parse_size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["ConvertOptions", "Model", "TensorInfo", "convert", "open", "plan"]

PathArg = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Describe one tensor: shape, dtype, size in bytes, and the files its elements lie in."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    files: tuple[str, ...]


class Model(Mapping[str, TensorInfo]):
    """A checkpoint seen as named tensors; data is read when it is asked for.

    Attributes:
        checkpoint: What the reader found.
        relation: Stored tensors to these tensors.
    """

    def __init__(
        self, checkpoint: Checkpoint, relation: Relation, casts: Mapping[str, tuple[DType, ...]]
    ) -> None:
        self.checkpoint = checkpoint
        self.relation = relation
        self._casts = casts
        self._pairs: dict[str, list[Pair]] | None = None

    @property
    def tensors(self) -> Model:
        """The tensors by name (the model itself is that mapping)."""
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(self.relation.right)

    def __len__(self) -> int:
        return len(self.relation.right)

    def __getitem__(self, name: str) -> TensorInfo:
        spec = self.relation.right[name]
        d = dtype_named(spec.dtype)
        if self._pairs is None:
            self._pairs = pairs_by_tensor(self.relation)
        keys = {p.left.tensor for p in self._pairs.get(name, ())}
        paths = {e.path for k in keys for e in self.checkpoint.stored[k].extents}
        return TensorInfo(name, spec.shape, d, spec.numel * d.itemsize, tuple(sorted(paths)))

    def to(self, target: str = "hf", **options: Any) -> Model:
        """Return the same tensors under the target's names and dtypes; nothing is read.

        Args:
            target: ``hf``.
            **options: Fields of `ConvertOptions`, such as ``dtype``.
        """
        chosen = _checked(ConvertOptions(to=target, **options))
        config, family = _architecture(self.checkpoint, chosen, needed=False)
        named = name_tensors(self.checkpoint, chosen, family, config.values if config else None)
        return Model(self.checkpoint, named.relation, named.casts)

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Read one tensor now, as a numpy array of its shape (``ml_dtypes`` for bfloat16).

        Raises:
            KeyError: if there is no such tensor.
            MismatchError: if replicas of it differ.
        """
        info = self[name]
        layout = FileLayout(info.nbytes, (), (Placed(name, info.dtype, info.shape, 0),))
        file = OutFile(name, "safetensors", layout)
        one = _plan_of(self.checkpoint, self.relation.select([name]), self._casts, (file,))
        with SourceFiles(self.checkpoint.files) as sources:
            filler = Filler(one, file, sources, pairs_by_tensor(one.relation))
            data, _, _ = filler.fill(0, info.nbytes, Buffers())
        return data.view(numpy_dtype(info.dtype)).reshape(info.shape)


def open(  # noqa: A001  (the API's name)
    path: PathArg, *, weights: Weights | None = None, tag: str | None = None
) -> Model:
    """Open any checkpoint; only metadata is read.

    Args:
        path: A run's folder, a tag folder, a Hugging Face folder, or a file inside one.
        weights: fp32 masters or the 16-bit weights the model ran with; None is the producer's default.
        tag: The DeepSpeed tag instead of the one in ``latest``.

    Raises:
        FormatError: if it is damaged or not a checkpoint.
        PlanError: if parts are missing or disagree.
    """
    checkpoint = open_checkpoint(Path(path), ReadOptions(weights, tag))
    return Model(
        checkpoint, checkpoint.relation, cast_chains(checkpoint, checkpoint.relation, checkpoint.via)
    )


def plan(source: PathArg, options: ConvertOptions | None = None, **fields: Any) -> Plan:
    """Plan a conversion from metadata alone; nothing is written.

    Args:
        source: The checkpoint.
        options: What to write.
        **fields: Fields of `ConvertOptions`, to set or to change in ``options``.

    Raises:
        PlanError: if a tensor is unmapped, uncovered, doubled or of another shape than the config asks for.
    """
    chosen = _checked(replace(options or ConvertOptions(), **fields))
    checkpoint = open_checkpoint(Path(source), ReadOptions(chosen.weights, chosen.tag))
    config, family = _architecture(checkpoint, chosen, needed=chosen.assets)
    named = name_tensors(checkpoint, chosen, family, config.values if config else None)
    notes, steps = list(checkpoint.notes), [*named.steps, *_left_out(checkpoint)]
    if family is not None and family.slots and config is not None:
        notes += compare(family, config.values, named)
    elif config is not None:
        kind = config.values.get("model_type")
        notes.append(Note("info", f"no table for model_type {kind!r}: names and shapes pass unchecked"))
    tensors = [(n, dtype_named(s.dtype), s.shape) for n, s in named.relation.right.items()]
    files, index = layout_weights(tensors, chosen.format, parse_size(chosen.max_shard_size))
    assets = [] if index is None else [index]
    if chosen.assets and config is not None:
        more, asset_steps, asset_notes = gather_assets(checkpoint, named, family, config, chosen.tokenizer)
        assets += more
        steps += asset_steps
        notes += asset_notes
    return replace(
        _plan_of(checkpoint, named.relation, named.casts, files),
        assets=tuple(assets),
        steps=tuple(steps),
        notes=tuple((n.level, n.text) for n in notes),
    )


def convert(
    source: PathArg,
    out: PathArg,
    *,
    workers: int = 0,
    max_memory: str | int = "64MiB",
    resume: bool = False,
    overwrite: bool = False,
    listen: Listener | None = None,
    **fields: Any,
) -> Report:
    """Convert a checkpoint.

    Args:
        source: The checkpoint.
        out: The output folder; new or empty unless ``overwrite`` or ``resume``.
        workers: Threads; 0 is one a core.
        max_memory: The most all buffers together may take.
        resume: Go on with an interrupted run.
        overwrite: Replace the model in ``out``.
        listen: Called with every event of the run, from any thread.
        **fields: Fields of `ConvertOptions`.

    Raises:
        CkptconvError: as `plan` does, or if reading or writing fails; ``out`` then holds no model.
    """
    memory = max_memory if isinstance(max_memory, int) else parse_size(max_memory)
    options = Options(workers=workers, max_memory=memory, resume=resume, overwrite=overwrite)
    return run(plan(source, **fields), Path(out), options, listen)


def _left_out(checkpoint: Checkpoint) -> list[Step]:
    """Say what the files hold beside the weights: padding, optimizer states."""
    padding = Counter[str]()
    for drop in checkpoint.relation.left_only:
        padding[drop.reason] += drop.box.numel
    steps = [Step("left out", f"{count:,} elements", reason) for reason, count in padding.items()]
    found = checkpoint.left_out.items()
    return steps + [
        Step("left out", f"{count:,} bytes", f"{kind}: not weights") for kind, count in found if count
    ]


def _checked(options: ConvertOptions) -> ConvertOptions:
    if options.to != "hf":
        raise UsageError(f"cannot convert to {options.to!r}", hint="targets: hf")
    return options


def _architecture(
    checkpoint: Checkpoint, options: ConvertOptions, *, needed: bool
) -> tuple[ConfigFound | None, Family | None]:
    """Find the config and the table of its architecture."""
    config = find_config(checkpoint, options.config, needed=needed)
    if options.family is None:
        return config, find_family(config.values.get("model_type")) if config else None
    found = next((f for f in families() if f.name == options.family), None)
    if found is None:
        names = ", ".join(f.name for f in families())
        raise UsageError(f"no family {options.family!r}", hint=f"families: {names}")
    return config, found


def _plan_of(
    checkpoint: Checkpoint,
    relation: Relation,
    casts: Mapping[str, tuple[DType, ...]],
    files: Sequence[OutFile],
) -> Plan:
    used = {p.left.tensor for p in relation.pairs}
    return Plan(
        source=str(checkpoint.root),
        producer=checkpoint.producer,
        relation=relation,
        stored={k: s for k, s in checkpoint.stored.items() if k in used},
        casts=casts,
        files=tuple(files),
        inputs=checkpoint.files,
    )
