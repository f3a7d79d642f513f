"""Give every name of a DeepSpeed checkpoint its tensor: master, frozen parameter, buffer, or alias."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from ckptconv.containers.base import FileTensor
from ckptconv.dtypes import BY_NAME, DType
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Note, Weights
from ckptconv.readers.deepspeed.experts import is_expert
from ckptconv.readers.deepspeed.find import Run, TagFiles
from ckptconv.readers.deepspeed.masters import Master
from ckptconv.readers.deepspeed.releases import buffers_of
from ckptconv.readers.deepspeed.states import ModelRank, as_dict
from ckptconv.readers.deepspeed.zero3 import zero3_frozen
from ckptconv.readers.sample import Sampler
from ckptconv.records import dataclass
from ckptconv.relations.terms import Term

__all__ = ["Reading", "aliases_of", "assemble", "rename_by_values", "tied_layers", "training_dtype"]

_FLOAT32 = BY_NAME["float32"]


@dataclass(slots=True)
class Reading:
    """Collect what is learnt while a checkpoint is opened; see `Checkpoint` for the fields."""

    run: Run
    files: TagFiles
    weights: Weights
    graph: GraphBuilder = field(default_factory=GraphBuilder)
    sampler: Sampler = field(default_factory=Sampler)
    notes: list[Note] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    via: dict[str, DType] = field(default_factory=dict)
    unresolved: list[str] = field(default_factory=list)
    terms: dict[str, tuple[Term, ...]] = field(default_factory=dict)

    def note(self, level: Literal["info", "guess", "warning"], text: str) -> None:
        """Add a note, once."""
        if (found := Note(level, text)) not in self.notes:
            self.notes.append(found)


def training_dtype(rank: ModelRank) -> DType | None:
    """Return the 16-bit dtype ``ds_config`` turns on, if it does."""
    config = as_dict(rank.head.get("ds_config"))
    for key, name in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16")):
        if as_dict(config.get(key)).get("enabled"):
            return BY_NAME[name]
    return None


def aliases_of(
    rank: ModelRank, module: Mapping[str, FileTensor], masters: Iterable[str] = ()
) -> dict[str, str]:
    """Return names that share data: those the file says, and tensors that view the same elements."""
    there = {*module, *masters, *(rank.frozen_shapes() or ())}
    aliases = {a: b for a, b in rank.shared().items() if b in there}
    first: dict[Any, str] = {}
    for name, t in module.items():
        if t.numel and name not in aliases and not rank.sharded:
            kept = first.setdefault((t.path, t.offset, t.shape, t.stride, t.dtype), name)
            if kept != name:
                aliases[name] = kept
    return {a: _root(aliases, b) for a, b in aliases.items()}


def _root(aliases: Mapping[str, str], name: str) -> str:
    for _ in range(len(aliases) + 1):
        if name not in aliases:
            return name
        name = aliases[name]
    raise FormatError(f"shared parameters name each other in a circle: {name}")


def rename_by_values(
    reading: Reading,
    rank: ModelRank,
    module: Mapping[str, FileTensor],
    masters: Mapping[str, Master],
    others: Collection[str],
) -> dict[str, Master]:
    """Give masters the names the module saves them under where the names themselves do not tell.

    Args:
        reading: Holds what is read.
        rank: The states the names come from.
        module: The 16-bit tensors.
        masters: Where each trainable parameter's masters are, by the names the optimizer knows.
        others: Names of the module that are no parameters of their own.

    Raises:
        PlanError: if a parameter may be one the module saves, but has other values than each of them.
    """
    frozen = rank.frozen_shapes() or {}
    strange = {n: t for n, t in module.items() if n not in masters and n not in others and n not in frozen}
    out: dict[str, Master] = {}
    for name, master in masters.items():
        known = name in module or name.startswith("tied_modules.") or is_expert(name)
        like = [] if known else [n for n, t in strange.items() if t.shape == master.shape and t.numel]
        if not like:
            out[name] = master
            continue
        box = master.boxes[0]
        stored = reading.graph.stored[box.tensor]
        found = next((n for n in like if reading.sampler.rounds_to(stored, box.offset, strange[n])), None)
        if found is None:
            raise PlanError(
                f"the optimizer knows a parameter {name}, the module saves none of that name, but {like[0]}, "
                "which neither calls frozen",
                where=rank.head_path,
                hint="the model's state_dict() renames in a way that is not known, or the files are of "
                "different saves",
            )
        del strange[found]
        out[found] = master
    return out


def tied_layers(
    reading: Reading,
    module: Mapping[str, FileTensor],
    named: Iterable[str],
    masters: Mapping[str, Sequence[Master]],
) -> dict[str, list[str]]:
    """Find the layer-file copies of each tied parameter of a pipeline.

    ``tied_modules.KEY.NAME`` is stored as ``NAME`` in the file of every layer that uses it
    (deepspeed 0.19.8, ``runtime/pipe/module.py``): same ending, same shape, and nobody else's parameter.

    Raises:
        PlanError: if a layer's tensor could be any of several tied parameters.
    """
    owned = set(named)
    ties: dict[str, list[str]] = {n: [] for n in sorted(owned) if n.startswith("tied_modules.")}
    for layer_name, tensor in module.items():
        if layer_name in owned:
            continue
        suffix = layer_name.split(".", 1)[1]
        fits = [n for n in ties if n.split(".", 2)[2] == suffix and _fits(reading, tensor, masters.get(n))]
        if len(fits) > 1:
            raise PlanError(
                f"{layer_name} could be any of the tied parameters {', '.join(fits)}", where=reading.run.tag
            )
        if fits:
            ties[fits[0]].append(layer_name)
    return ties


def _fits(reading: Reading, tensor: FileTensor, located: Sequence[Master] | None) -> bool:
    """Whether a layer's tensor may be the rounded copy of a master, as far as a sample shows."""
    if not located:
        return True
    if located[0].shape != tensor.shape:
        return False
    if len(located[0].boxes) != 1 or not located[0].boxes[0].is_contiguous:
        return True
    box = located[0].boxes[0]
    stored = reading.graph.stored[box.tensor]
    return tensor.dtype == stored.dtype or reading.sampler.resembles(stored, box.offset, tensor)


def assemble(
    reading: Reading,
    rank: ModelRank,
    module: Mapping[str, FileTensor],
    masters: Mapping[str, Sequence[Master]],
    *,
    prefix: str = "",
    ties: Mapping[str, Sequence[str]] | None = None,
    compared: bool = False,
) -> None:
    """Add all tensors of a model, or of one tensor-parallel rank, to the graph.

    Args:
        reading: Collects the result.
        rank: The states the names come from.
        module: The 16-bit tensors; placeholders without data in stage 3.
        masters: Where each trainable parameter's masters are; all but the first are replicas.
        prefix: Put before every name.
        ties: Layer-file copies of a pipeline's tied parameters.
        compared: Whether masters were named by a rule, so that all of them are compared with the module.
    """
    graph, ties = reading.graph, ties or {}
    frozen = zero3_frozen(rank, graph) if rank.fragments else {}
    aliases = aliases_of(rank, module, masters)
    buffers = buffers_of(rank) - aliases.keys()
    # A frozen parameter that the save left out may still be there under the other name of a tie.
    orphans = {a: b for a, b in rank.shared().items() if a in module and a not in aliases}
    copies_of_ties = {layer for name, layers in ties.items() for layer in layers if layer != name}
    called_frozen = rank.frozen_shapes() if rank.module is not None else None
    widened = 0
    strange: list[str] = []
    for name in dict.fromkeys([*module, *frozen, *masters, *ties]):
        full, tensor = prefix + name, module.get(name)
        if name in buffers:
            reading.buffers.add(full)
        if name in aliases:
            reading.aliases[full] = prefix + aliases[name]
        elif name in orphans and rank.sharded:
            reading.note("warning", f"{name} is tied to {orphans[name]}, which this save left out")
        elif name in copies_of_ties:
            continue
        elif name in masters:
            _add_masters(reading, rank, full, tensor, masters[name])
            witnesses = [module[layer] for layer in ties.get(name, ())]
            if compared and tensor is not None and tensor.numel:
                witnesses.append(tensor)
            for i, witness in enumerate(witnesses):
                graph.whole(f"module/{full}/{i}", witness, full, copy=True)
        elif name in frozen:
            master, part = frozen[name]
            dtype = _written(reading, part.dtype)
            widened += dtype != part.dtype
            graph.name(full, master.shape, dtype)
            graph.pairs += master.pairs(full)
        elif tensor is None:
            if not ties[name]:
                raise PlanError(f"no layer file holds the tied parameter {name}", where=reading.run.tag)
            for i, layer in enumerate(ties[name]):
                graph.whole(f"module/{layer}", module[layer], full, copy=i > 0)
        elif name in buffers:
            graph.whole(f"module/{full}", tensor, full)
        elif rank.sharded:
            reading.unresolved.append(full)
        else:
            dtype = tensor.dtype
            if called_frozen is None or name in called_frozen or name in orphans or is_expert(name):
                dtype = _written(reading, tensor.dtype)
                widened += dtype != tensor.dtype
            elif reading.weights == "master":
                strange.append(full)
            kept = prefix + orphans.get(name, name)
            if kept != full:
                reading.aliases[full] = kept
            graph.whole(f"module/{full}", tensor, kept, dtype=dtype, copy=kept in graph.right)
    if widened:
        text = f"{widened} frozen parameters have no master; their own values are widened to float32"
        reading.note("info", text)
    if strange:
        text = f"{len(strange)} tensors of the module are neither parameters nor buffers: "
        reading.note("info", text + ", ".join(strange[:4]) + (", ..." if len(strange) > 4 else ""))
    if reading.via:
        what = "ZeRO-3 stores no 16-bit weights" if rank.sharded else "not all 16-bit weights are stored"
        reading.note("info", f"{what}; they are the masters, rounded as in training")


def _written(reading: Reading, stored: DType) -> DType:
    """Return the dtype a parameter without a master is given: float32 among masters, else its own."""
    return _FLOAT32 if reading.weights == "master" and stored.kind == "float" else stored


def _add_masters(
    reading: Reading, rank: ModelRank, name: str, tensor: FileTensor | None, located: Sequence[Master]
) -> None:
    dtype = _FLOAT32
    if reading.weights == "model":
        dtype = (tensor.dtype if tensor is not None else training_dtype(rank)) or _FLOAT32
        boxes = located[0].boxes
        if boxes and reading.graph.stored[boxes[0].tensor].dtype != dtype:
            reading.via[name] = dtype
    reading.graph.name(name, located[0].shape, dtype)
    for i, master in enumerate(located):
        if master.shape != located[0].shape:
            raise PlanError(
                f"two ranks hold {name} with shapes {list(located[0].shape)} and {list(master.shape)}",
                where=rank.head_path.parent,
            )
        reading.graph.pairs += master.pairs(name, copy=i > 0)
