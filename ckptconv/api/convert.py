"""Open checkpoints, plan conversions and carry them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import DType, numpy_dtype
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.events import Listener
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.options import Engine, Options, Report
from ckptconv.engine.run import run
from ckptconv.errors import PlanError, UsageError
from ckptconv.families import Family
from ckptconv.numbers.sizes import parse_size
from ckptconv.places.files import SourceFiles
from ckptconv.places.places import place
from ckptconv.planning.adapters.carry import ones
from ckptconv.planning.adapters.lora import adapter_layout, term_steps
from ckptconv.planning.adapters.peft import prepare
from ckptconv.planning.decode import as_values, check_whole, decode_steps, decoded, noted
from ckptconv.planning.folder import compare, gather_assets
from ckptconv.planning.model import Architecture, find_architecture, is_zero_centered
from ckptconv.planning.names import cast_chains, cast_steps, name_tensors
from ckptconv.planning.settle import keeps_names, reading, understood
from ckptconv.plans.checkpoint import Checkpoint, Note, ReadOptions, Weights
from ckptconv.plans.plan import OutFile, Plan, Step
from ckptconv.plans.replicas import with_replicas
from ckptconv.plans.request import ConvertOptions
from ckptconv.readers.registry import open_checkpoint
from ckptconv.relations import Pair, Relation, Spec
from ckptconv.relations.terms import Terms, operands
from ckptconv.slots.translate import to_slots, without
from ckptconv.writers.dcp import layout_dcp
from ckptconv.writers.huggingface import Container, layout_weights
from ckptconv.writers.megatron_ranks import as_stored, follow_through, retyped, shard, with_tied_head
from ckptconv.writers.mindformers import lay_out, plan_merge
from ckptconv.writers.torch_dist_target import distribute

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["ConvertOptions", "Model", "TensorInfo", "convert", "open", "plan"]

PathArg = str | PathLike[str]
_TARGETS = ("hf", "megatron", "torch_dist", "dcp", "mindformers")

_LAY_OUT = {"megatron": shard, "torch_dist": distribute, "mindformers": lay_out}


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
        self,
        checkpoint: Checkpoint,
        relation: Relation,
        casts: Mapping[str, tuple[DType, ...]],
        terms: Terms = MappingProxyType({}),
    ) -> None:
        self.checkpoint = checkpoint
        self.relation = relation
        self._casts, self._terms = casts, terms
        self._parts = operands(terms)
        self._pairs: dict[str, list[Pair]] | None = None

    @property
    def tensors(self) -> Model:
        """The tensors by name (the model itself is that mapping)."""
        return self

    def __iter__(self) -> Iterator[str]:
        return (n for n in self.relation.right if n not in self._parts)

    def __len__(self) -> int:
        return len(self.relation.right) - len(self._parts)

    def __getitem__(self, name: str) -> TensorInfo:
        if name in self._parts:
            raise KeyError(name)
        spec = self.relation.right[name]
        d = dtype_named(spec.dtype)
        if self._pairs is None:
            self._pairs = pairs_by_tensor(self.relation)
        parts = (name, *operands({name: self._terms.get(name, ())}))
        keys = {p.left.tensor for n in parts for p in self._pairs.get(n, ())}
        paths = {p for k in keys for p in self.checkpoint.stored[k].paths()}
        return TensorInfo(name, spec.shape, d, spec.numel * d.itemsize, tuple(sorted(paths)))

    def to(self, target: str = "hf", **options: Any) -> Model:
        """Return the same tensors under the target's names and dtypes; nothing is read.

        Args:
            target: ``hf``.
            **options: Fields of `ConvertOptions`, such as ``dtype``.
        """
        chosen = _checked(ConvertOptions(to=target, **options))
        made = prepare(decoded(self.checkpoint, chosen), chosen)
        model = find_architecture(made.checkpoint, chosen, needed=False)
        named = name_tensors(made.checkpoint, chosen, model, made.terms)
        return Model(made.checkpoint, named.relation, named.casts, named.terms)

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Read one tensor now, as a numpy array of its shape (``ml_dtypes`` for bfloat16).

        Raises:
            KeyError: if there is no such tensor.
            MismatchError: if replicas of it differ.
        """
        info = self[name]
        layout = FileLayout(info.nbytes, (), (Placed(name, info.dtype, info.shape, 0),))
        file = OutFile(name, "safetensors", layout)
        terms = {name: self._terms[name]} if name in self._terms else {}
        relation = self.relation.select([name, *operands(terms)])
        one = _plan_of(self.checkpoint, relation, self._casts, (file,), terms)
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
    checkpoint = noted(open_checkpoint(place(path), ReadOptions(weights, tag)))
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
    checkpoint = decoded(understood(open_checkpoint(place(source), _reading(chosen)), chosen), chosen)
    return with_replicas(_plan(checkpoint, chosen), chosen.replicas)


def _plan(checkpoint: Checkpoint, chosen: ConvertOptions) -> Plan:
    """Plan a conversion that compares all replicas."""
    if keeps_names(checkpoint, chosen):
        merged = plan_merge(checkpoint, chosen)
        return replace(merged, steps=(*merged.steps, *_left_out(checkpoint)))
    if chosen.to in _LAY_OUT:
        return _plan_shards(checkpoint, chosen)
    made = prepare(checkpoint, chosen)
    checkpoint = made.checkpoint
    model = find_architecture(checkpoint, chosen, needed=chosen.assets and made.config is None)
    config, family = model.config, model.family
    named = name_tensors(checkpoint, chosen, model, made.terms)
    if checkpoint.table is not None:
        named.relation.check()
    check_whole(checkpoint, named.relation)
    adapter = made.config or named.adapter
    notes = [*checkpoint.notes, *model.notes]
    steps = [*named.steps, *_left_out(checkpoint), *model.steps]
    if adapter is not None:
        config = None
    elif family is not None and family.entries and config is not None:
        # Only a .ckpt says nothing of its length: one cut between two records is a file like any other.
        complete = checkpoint.producer == "mindspore" and not chosen.drop
        notes += compare(family, config.values, as_values(checkpoint, named), complete=complete)
    elif config is not None:
        kind = config.values.get("model_type")
        notes.append(Note("info", f"no table for model_type {kind!r}: names and shapes pass unchecked"))
    tensors = [(n, dtype_named(s.dtype), s.shape) for n, s in named.written.items()]
    if adapter is not None:
        files: tuple[OutFile, ...] = (adapter_layout(tensors, _container(chosen)),)
        assets = [adapter]
    elif chosen.to == "dcp":
        files, assets = layout_dcp(tensors, parse_size(chosen.max_shard_size)), []
    else:
        files, index = layout_weights(tensors, _container(chosen), parse_size(chosen.max_shard_size))
        assets = [] if index is None else [index]
    if chosen.assets and config is not None:
        tokenizer = chosen.tokenizer or model.tokenizer
        more, asset_steps, asset_notes = gather_assets(
            checkpoint, named, family, config, tokenizer, chosen.copy_code
        )
        assets += more
        steps += asset_steps
        notes += asset_notes
    return replace(
        _plan_of(checkpoint, named.relation, named.casts, files, named.terms),
        assets=tuple(assets),
        steps=tuple(steps),
        notes=tuple((n.level, n.text) for n in notes),
    )


def _reading(options: ConvertOptions) -> ReadOptions:
    return ReadOptions(
        options.weights,
        options.tag,
        iteration=options.iteration,
        sizes=options.source_sizes,
        **reading(options),
    )


def _plan_shards(checkpoint: Checkpoint, options: ConvertOptions) -> Plan:
    """Plan shards of ranks: the model under Hugging Face's names, its slots, the target's tensors."""
    if options.lora is not None or options.adapter is not None:
        raise UsageError(
            f"LoRA adapters are not merged on the way to {options.to}",
            hint="merge them into a Hugging Face model first (--to hf), and convert that",
        )
    checkpoint = prepare(checkpoint, options).checkpoint
    model = find_architecture(checkpoint, options, needed=True)
    config, family = model.config, model.family
    assert config is not None
    if family is None or not family.entries:
        raise PlanError(
            f"there is no table for model_type {config.values.get('model_type')!r}",
            where=config.origin,
            hint="give --family with a name or a file",
        )
    named = name_tensors(checkpoint, options, replace(model, zero_centered=None))
    table = family.table(config.values)
    buffers = [n for n in table.named(named.relation.right)[1] if family.is_ignored(n)]
    relation = without(named.relation, buffers, "a buffer the model makes itself")
    inner = to_slots(relation.right, table, family.dims(config.values), what="config.json")
    relation = relation.compose(inner)
    target, pattern = _LAY_OUT[options.to](
        options, relation.right, bool(named.tied), config.values, family, checkpoint
    )
    relation = with_tied_head(relation, target.relation)
    outer = retyped(target.relation, relation.right)
    relation = relation.compose(outer)
    if pattern is not None:
        stored = {k: Spec(s.shape, s.dtype.name) for k, s in pattern.stored.items()}
        relation = as_stored(relation, stored, options.dtype)
    terms = ones(outer, _centering(checkpoint, options, model, pattern, family))
    via = follow_through(follow_through(follow_through(checkpoint.via, named.relation), inner), outer)
    casts = cast_chains(checkpoint, relation, via)
    notes = [*checkpoint.notes, *model.notes, *compare(family, config.values, named), *target.notes]
    steps = [s for s in named.steps if s.kind != "cast"] + cast_steps(casts) + _left_out(checkpoint)
    steps += term_steps(terms, relation.right)
    steps += [Step("drop", n, "a buffer the model makes itself") for n in buffers]
    relation.check()
    return replace(
        _plan_of(checkpoint, relation, casts, target.files(relation.right), terms),
        assets=target.assets,
        steps=tuple(steps),
        notes=tuple((n.level, n.text) for n in notes),
    )


def _centering(
    checkpoint: Checkpoint,
    options: ConvertOptions,
    model: Architecture,
    pattern: Checkpoint | None,
    family: Family,
) -> Callable[[str], int]:
    """Return what a norm lacks of its 1 in the source and not in the target, by its slot."""
    source = model.zero_centered if checkpoint.table is not None else None
    target: bool | None = family.zero_centered
    if pattern is not None:
        target = is_zero_centered(pattern.arguments, family)
    elif options.to == "mindformers":
        target = None  # as the family has them
    elif source and options.to == "megatron":
        target = True  # its arguments go on saying so

    def lacks(side: bool | None, norm: str) -> bool:
        return family.is_zero_centered(norm) if side is None else side

    return lambda norm: lacks(source, norm) - lacks(target, norm)


def convert(
    source: PathArg,
    out: PathArg,
    *,
    workers: int = 0,
    max_memory: str | int = "64MiB",
    resume: bool = False,
    overwrite: bool = False,
    engine: Engine = "local",
    address: str | None = None,
    listen: Listener | None = None,
    **fields: Any,
) -> Report:
    """Convert a checkpoint.

    Args:
        source: The checkpoint.
        out: The output folder; new or empty unless ``overwrite`` or ``resume``.
        workers: Threads; 0 is two a core, at most 8. On a cluster tasks at a time.
        max_memory: The most all buffers together may take; on a cluster, those of one task.
        resume: Go on with an interrupted run.
        overwrite: Replace the model in ``out``.
        engine: ``local``, or ``ray`` for a Ray cluster.
        address: The cluster's: ``auto``, ``HOST:PORT``, ``ray://HOST:PORT``, or ``local`` to start one here.
        listen: Called with every event of the run, from any thread.
        **fields: Fields of `ConvertOptions`.

    Raises:
        CkptconvError: as `plan` does, or if reading or writing fails; ``out`` then holds no model.
    """
    memory = max_memory if isinstance(max_memory, int) else parse_size(max_memory)
    options = Options(workers, memory, resume, overwrite, engine, address)
    return run(plan(source, **fields), place(out), options, listen)


def _left_out(checkpoint: Checkpoint) -> list[Step]:
    """Say which weights are decoded, and what the files hold beside them: padding, optimizer states."""
    padding = Counter[str]()
    for drop in checkpoint.relation.left_only:
        padding[drop.reason] += drop.box.numel
    steps = decode_steps(checkpoint)
    steps += [Step("left out", f"{count:,} elements", reason) for reason, count in padding.items()]
    found = checkpoint.left_out.items()
    return steps + [
        Step("left out", f"{count:,} bytes", f"{kind}: not weights") for kind, count in found if count
    ]


def _container(options: ConvertOptions) -> Container:
    if options.format == "ckpt":
        raise UsageError("--format ckpt is for --to mindformers", hint="give safetensors or bin")
    return options.format or "safetensors"


def _checked(options: ConvertOptions) -> ConvertOptions:
    if options.to not in _TARGETS:
        raise UsageError(f"cannot convert to {options.to!r}", hint=f"targets: {', '.join(_TARGETS)}")
    return options


def _plan_of(
    checkpoint: Checkpoint,
    relation: Relation,
    casts: Mapping[str, tuple[DType, ...]],
    files: Sequence[OutFile],
    terms: Terms,
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
        terms=terms,
    )
