"""Read a DeepSpeed checkpoint of any ZeRO stage into named tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptconv.dtypes import BY_NAME, DType
from ckptconv.errors import FormatError, PlanError
from ckptconv.graph import Relation
from ckptconv.readers.base import Checkpoint, GraphBuilder, Note, ReadOptions, Weights
from ckptconv.readers.deepspeed.find import Run, TagFiles, find_run, sort_files
from ckptconv.readers.deepspeed.masters import Master, flat_masters, zero3_frozen, zero3_masters
from ckptconv.readers.deepspeed.parallel import join_tensor_parallel
from ckptconv.readers.deepspeed.stage0 import has_masters, nameless_masters
from ckptconv.readers.deepspeed.states import ModelRank, as_dict, load, open_ranks, steps_of
from ckptconv.readers.deepspeed.universal import is_scrambled, universal_masters
from ckptconv.readers.sample import Sampler
from ckptconv.storage.base import FileTensor

__all__ = ["open_deepspeed"]

_FLOAT32 = BY_NAME["float32"]
_EXPERT = re.compile(r"deepspeed_experts\.(\d+)\.")


@dataclass(slots=True)
class _Reading:
    """Collect what is learnt while a checkpoint is opened."""

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

    def note(self, level: Any, text: str) -> None:
        if (found := Note(level, text)) not in self.notes:
            self.notes.append(found)


def open_deepspeed(path: Path, options: ReadOptions) -> Checkpoint:
    """Read a run, a tag folder or a file inside one.

    Raises:
        FormatError: if a file is damaged or of a form that is not supported.
        PlanError: if ranks are missing, disagree, or hold fewer elements than the parameters need.
    """
    run = find_run(path, options.tag)
    files = sort_files(run.tag)
    reading = _Reading(run, files, options.weights or "master", notes=list(run.notes))
    ranks = open_ranks(files, optimizer=reading.weights == "master" and files.universal is None)
    for rank in ranks:
        _check_steps(rank, reading.sampler)
    weights = _weights_there(reading, ranks, explicit=options.weights == "master")
    reading.weights = weights
    if _tensor_parallel(ranks, files) > 1:
        relation = _read_tensor_parallel(reading, ranks)
    else:
        _read_stages(reading, ranks)
        relation = reading.graph.relation()
    for f in _all_files(files):
        reading.graph.touch(f)
    head = ranks[0].head
    stored = sum(s.nbytes for s in reading.graph.stored.values())
    total = sum(s.size for s in reading.graph.files)
    return Checkpoint(
        root=run.root,
        data=run.tag,
        producer="deepspeed",
        format=_format(ranks, files),
        weights=weights,
        stored=reading.graph.stored,
        relation=relation,
        files=reading.graph.files,
        versions={"deepspeed": str(head["ds_version"])} if head.get("ds_version") else {},
        layout=_layout(ranks, files),
        iteration=head.get("global_steps") if isinstance(head.get("global_steps"), int) else None,
        via=reading.via,
        aliases=reading.aliases,
        buffers=frozenset(reading.buffers),
        left_out={"optimizer states and everything else": max(0, total - stored)},
        unresolved=tuple(reading.unresolved),
        notes=tuple(reading.notes),
    )


def _all_files(files: TagFiles) -> Iterable[Path]:
    for by_rank in (files.model, files.layers):
        for ranks in by_rank.values():
            yield from ranks.values()
    yield from files.experts.values()


def _weights_there(reading: _Reading, ranks: list[ModelRank], *, explicit: bool) -> Weights:
    """Return the weights that can be read: without masters, the model's own are the masters."""
    if reading.weights == "model" or reading.files.universal or any(r.optim for r in ranks):
        return reading.weights
    if any(has_masters(state) for _, state, _ in _stage0_optimizers(reading.files, ranks)):
        return "master"
    dtypes = {t.dtype for r in ranks for t in (r.module or {}).values() if isinstance(t, FileTensor)}
    partitioned = any(r.head.get("param_shapes") is not None for r in ranks)
    config = as_dict(ranks[0].head.get("ds_config"))
    stage = as_dict(config.get("zero_optimization")).get("stage")
    # BF16_Optimizer kept its masters in partition files at stage 0 as well (0.6.2 to 0.18).
    elsewhere = ranks[0].head.get("optimizer") is None and _config_dtype(ranks[0]) is not None
    if partitioned or elsewhere or (isinstance(stage, int) and stage > 0):
        raise PlanError(
            "the optimizer states are missing: the fp32 masters are kept there, and no *_optim_states.pt is here",
            where=reading.run.tag,
            hint="copy the *_optim_states.pt files of every rank, or take the 16-bit weights with --weights model",
        )
    if _FLOAT32 not in dtypes:
        if explicit:
            raise PlanError(
                "no fp32 masters are stored in this checkpoint",
                where=reading.run.tag,
                hint="leave out --weights",
            )
        reading.note("info", "no fp32 masters are stored; the weights are those the model ran with")
    return "model"


def _stage0_optimizers(files: TagFiles, ranks: list[ModelRank]) -> list[tuple[int, Mapping[str, Any], Path]]:
    """Optimizer states of stage 0 by expert-parallel rank; one, of rank 0, without experts."""
    out: list[tuple[int, Mapping[str, Any], Path]] = []
    for rank in ranks:
        experts = files.expert_optim.get(rank.mp, {})
        for ep, path in sorted(experts.items()):
            out.append((ep, as_dict(load(path).get("optimizer")), path))
        if not experts:
            out.append((0, as_dict(rank.head.get("optimizer")), rank.head_path))
    return out


def _check_steps(rank: ModelRank, sampler: Sampler) -> None:
    """Compare the step counters of the ranks' optimizers; they are equal in files of one save."""
    known: tuple[float, Path] | None = None
    for state, path in zip(rank.optim, rank.optim_paths, strict=True):
        found = next(steps_of(state), None)
        if isinstance(found, FileTensor):
            found = float(sampler.elements(found, 0, 1)[0]) if found.numel == 1 else None
        if not isinstance(found, (int, float)):
            continue
        if known is not None and found != known[0]:
            raise PlanError(
                f"the optimizer of {path.name} is at step {found:g}, that of {known[1].name} at step {known[0]:g}",
                where=path,
                hint="the files are of different saves; copy one whole save",
            )
        known = (float(found), path)


def _tensor_parallel(ranks: list[ModelRank], files: TagFiles) -> int:
    sizes = as_dict(ranks[0].head.get("checkpoint_parallel_dimensions"))
    if isinstance(sizes.get("tp_degree"), int):
        return int(sizes["tp_degree"])
    if files.layers:
        return max(len(tp) for tp in files.layers.values())
    return len(ranks) if ranks[0].module is not None else 1


def _read_tensor_parallel(reading: _Reading, ranks: list[ModelRank]) -> Relation:
    info = next(
        (
            as_dict(r.head["universal_checkpoint_info"])
            for r in ranks
            if r.head.get("universal_checkpoint_info")
        ),
        {},
    )
    if reading.files.layers or reading.files.universal or reading.files.experts:
        raise FormatError(
            "tensor parallel together with pipeline stages, experts or the universal layout is not supported",
            where=reading.run.tag,
        )
    if not info:
        raise PlanError(
            "these files do not say along which axis tensor parallelism cut each parameter "
            "(no 'universal_checkpoint_info', as with Megatron-DeepSpeed)",
            where=reading.run.tag,
        )
    prefixes = [f"mp_rank_{r.mp:02d}/" for r in ranks]
    for rank, prefix in zip(ranks, prefixes, strict=True):
        module, names = _module_tensors(reading, rank.module or {}, rank), {}
        names = _masters(reading, rank, module) if reading.weights == "master" or rank.stage == 3 else {}
        _assemble(reading, rank, module, {n: [m] for n, m in names.items()}, prefix)
    strip = {p + n: n for p in prefixes for n in (ranks[0].module or {})}
    reading.aliases = {strip.get(a, a): strip.get(b, b) for a, b in reading.aliases.items()}
    reading.buffers = {strip.get(b, b) for b in reading.buffers}
    reading.via = {strip.get(n, n): d for n, d in reading.via.items()}
    reading.unresolved = sorted({strip.get(n, n) for n in reading.unresolved})
    shards = reading.graph.relation()
    whole = join_tensor_parallel(shards, prefixes, info, ranks[0].head_path)
    whole.check()
    return shards.compose(whole)


def _read_stages(reading: _Reading, ranks: list[ModelRank]) -> None:
    """Read all pipeline stages, or the only rank, as one model."""
    head = ranks[0]
    module: dict[str, FileTensor] = {}
    if head.module is None:
        for index in sorted(reading.files.layers):
            for name, tensor in load(reading.files.layers[index][0]).items():
                if isinstance(tensor, FileTensor):
                    module[f"{index}.{name}"] = tensor
    else:
        module = _module_tensors(reading, head.module, head)
    for key in sorted(reading.files.experts):
        module.update(
            (n, t) for n, t in load(reading.files.experts[key]).items() if isinstance(t, FileTensor)
        )
    masters: dict[str, list[Master]] = {}
    named: set[str] = set()
    for rank in ranks:
        named.update(n for g in rank.param_shapes() or [] for n in g)
        if (
            reading.weights == "master"
            or rank.stage == 3
            or (reading.files.universal and not _has_data(module))
        ):
            for name, master in _masters(reading, rank, module).items():
                masters.setdefault(name, []).append(master)
    ties = _tied_layers(reading, module, named, masters) if head.module is None else {}
    _assemble(reading, head, module, masters, "", ties)


def _has_data(module: Mapping[str, FileTensor]) -> bool:
    return any(t.numel for t in module.values())


def _module_tensors(reading: _Reading, module: Mapping[str, Any], rank: ModelRank) -> dict[str, FileTensor]:
    """Return the module's tensors; entries that are none (extra states) are said."""
    others = [k for k, v in module.items() if not isinstance(v, FileTensor) and v is not None]
    if others:
        reading.note(
            "warning", f"not tensors, left out: {', '.join(others[:8])}" + (" ..." if len(others) > 8 else "")
        )
    return {str(k): v for k, v in module.items() if isinstance(v, FileTensor)}


def _masters(reading: _Reading, rank: ModelRank, module: Mapping[str, FileTensor]) -> dict[str, Master]:
    """Locate the rank's fp32 masters, however its optimizer keeps them."""
    if reading.files.universal is not None:
        if is_scrambled(rank):
            reading.note(
                "warning",
                "round_robin_gradients scrambled this universal checkpoint; its parameters were put in order again and are compared with the 16-bit weights",
            )
        return universal_masters(reading.files.universal, rank, reading.graph)
    if rank.stage == 3:
        return zero3_masters(rank, reading.graph)
    if rank.optim:
        return flat_masters(rank, reading.graph, {n: t.shape for n, t in module.items()})
    buffers = {str(b) for b in rank.head.get("buffer_names") or []}
    aliases = _aliases(rank, module)
    out: dict[str, Master] = {}
    optimizers = _stage0_optimizers(reading.files, [rank])
    counts = [int(m[1]) + 1 for n in module if (m := _EXPERT.search(n))]
    local = max(counts, default=0) // len(optimizers)
    for ep, state, path in optimizers:
        if not has_masters(state):
            continue
        mine = {
            n: t
            for n, t in module.items()
            if n not in buffers
            and n not in aliases
            and t.dtype.kind == "float"
            and (not (m := _EXPERT.search(n)) or int(m[1]) // local == ep)
        }
        reading.note(
            "guess",
            "stage 0 masters carry no names: each was matched with the parameter it rounds to, and all of it is compared",
        )
        prefix = f"mp_rank_{rank.mp:02d}/" + (f"expp_rank_{ep}/" if len(optimizers) > 1 else "")
        for name, master in nameless_masters(
            state, mine, reading.graph, prefix, reading.sampler, path
        ).items():
            if name in out:  # dense parameters are repeated by every expert-parallel rank
                reading.graph.pairs += master.pairs(name, copy=True)
            else:
                out[name] = master
    return out


def _aliases(rank: ModelRank, module: Mapping[str, FileTensor]) -> dict[str, str]:
    """Names that share data: what the file says, and tensors that view the same elements."""
    aliases = {str(a): str(b) for a, b in as_dict(rank.head.get("shared_params")).items()}
    first: dict[Any, str] = {}
    for name, t in module.items():
        if t.numel and name not in aliases and rank.stage != 3:
            kept = first.setdefault((t.path, t.offset, t.shape, t.stride, t.dtype), name)
            if kept != name:
                aliases[name] = kept
    return {a: _root(aliases, b) for a, b in aliases.items() if _root(aliases, b) != a}


def _root(aliases: Mapping[str, str], name: str) -> str:
    for _ in range(len(aliases) + 1):
        if name not in aliases:
            return name
        name = aliases[name]
    raise FormatError(f"shared parameters name each other in a circle: {name}")


def _tied_layers(
    reading: _Reading,
    module: Mapping[str, FileTensor],
    named: Iterable[str],
    masters: Mapping[str, list[Master]],
) -> dict[str, list[str]]:
    """Find the layer-file copies of each tied parameter of a pipeline.

    ``tied_modules.KEY.NAME`` is stored as ``NAME`` in the file of every layer that uses it
    (deepspeed 0.19.8, ``runtime/pipe/module.py``): same ending, same shape, and nobody else's parameter.
    """
    tied = [n for n in named if n.startswith("tied_modules.")]
    owned = set(named)
    ties: dict[str, list[str]] = {n: [] for n in tied}
    for layer_name, tensor in module.items():
        if layer_name in owned:
            continue
        suffix = layer_name.split(".", 1)[1]
        fits = [n for n in tied if n.split(".", 2)[2] == suffix and _fits(reading, n, tensor, masters)]
        if len(fits) > 1:
            raise PlanError(
                f"{layer_name} could be any of the tied parameters {', '.join(fits)}", where=reading.run.tag
            )
        if fits:
            ties[fits[0]].append(layer_name)
    return ties


def _fits(reading: _Reading, name: str, tensor: FileTensor, masters: Mapping[str, list[Master]]) -> bool:
    located = masters.get(name)
    if not located:
        return True
    if located[0].shape != tensor.shape:
        return False
    box = located[0].boxes[0]
    stored = reading.graph.stored[box.tensor]
    if tensor.dtype == stored.dtype or not box.is_contiguous or box.numel != tensor.numel:
        return True
    return reading.sampler.rounds_to(stored, box.offset, tensor)


def _assemble(
    reading: _Reading,
    rank: ModelRank,
    module: Mapping[str, FileTensor],
    masters: Mapping[str, list[Master]],
    prefix: str,
    ties: Mapping[str, list[str]] | None = None,
) -> None:
    """Give every name its tensor: master, frozen parameter, buffer, the module's own, or an alias."""
    graph, sharded = reading.graph, rank.stage == 3 or (bool(module) and not _has_data(module))
    buffers = {str(b) for b in rank.head.get("buffer_names") or []}
    aliases = _aliases(rank, module)
    frozen = zero3_frozen(rank, graph) if rank.fragments else {}
    # Stage 0 names its masters by rounding, a scrambled universal checkpoint and tied pipeline layers are put
    # together by rule: there the whole of the 16-bit weights is compared as well.
    compared = (rank.stage == 0 and not reading.files.universal) or (
        reading.files.universal is not None and is_scrambled(rank)
    )
    tied_copies = {layer: name for name, layers in (ties or {}).items() for layer in layers}
    upcast = 0
    for name in [
        *module,
        *(n for n in masters if n not in module),
        *(n for n in ties or {} if n not in masters),
    ]:
        full, tensor = prefix + name, module.get(name)
        if name in aliases:
            reading.aliases[full] = prefix + aliases[name]
        elif name in tied_copies and tied_copies[name] != name:
            continue
        elif name in masters:
            located = masters[name]
            stored = graph.stored[located[0].boxes[0].tensor] if located[0].boxes else None
            model = tensor.dtype if tensor is not None else _config_dtype(rank)
            dtype = _FLOAT32
            if reading.weights == "model":
                dtype = model or _FLOAT32
                if stored is not None and stored.dtype != dtype:
                    reading.via[full] = dtype
            graph.name(full, located[0].shape, dtype)
            for i, master in enumerate(located):
                graph.pairs += master.pairs(full, copy=i > 0)
            witnesses = [module[layer] for layer in (ties or {}).get(name, [])]
            if compared and tensor is not None and tensor.numel:
                witnesses.append(tensor)
            for i, witness in enumerate(witnesses):
                graph.whole(f"module/{full}" + (f"/{i}" if i else ""), witness, full, copy=True)
        elif name in frozen:
            master, part = frozen[name]
            widen = reading.weights == "master" and part.dtype.kind == "float"
            upcast += widen and part.dtype != _FLOAT32
            graph.name(full, master.shape, _FLOAT32 if widen else part.dtype)
            graph.pairs += master.pairs(full)
        elif tensor is None:
            layers = (ties or {})[name]
            if not layers:
                raise PlanError(f"no layer file holds the tied parameter {name}", where=reading.run.tag)
            for i, layer in enumerate(layers):
                graph.whole(f"module/{layer}", module[layer], full, copy=i > 0)
        elif name in buffers or tensor.dtype.kind != "float":
            graph.whole(f"module/{full}", tensor, full)
        elif sharded:
            reading.unresolved.append(full)
        else:
            widen = reading.weights == "master" and tensor.dtype != _FLOAT32
            upcast += widen
            graph.whole(f"module/{full}", tensor, full, dtype=_FLOAT32 if widen else None)
        if name in buffers:
            reading.buffers.add(full)
    if upcast:
        reading.note(
            "info", f"{upcast} frozen parameters have no master; their own values are widened to float32"
        )
    if reading.via:
        reading.note("info", "ZeRO-3 stores no 16-bit weights; they are the masters, rounded as in training")


def _config_dtype(rank: ModelRank) -> DType | None:
    config = as_dict(rank.head.get("ds_config"))
    for key, name in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16")):
        if as_dict(config.get(key)).get("enabled"):
            return BY_NAME[name]
    return None


def _format(ranks: list[ModelRank], files: TagFiles) -> str:
    if files.universal is not None:
        return "universal checkpoint"
    kind = f"ZeRO stage {ranks[0].stage}" if ranks[0].stage else "without ZeRO"
    return kind + (", pipeline" if files.layers else "") + (", mixture of experts" if files.experts else "")


def _layout(ranks: list[ModelRank], files: TagFiles) -> dict[str, Any]:
    tp = _tensor_parallel(ranks, files)
    head = ranks[0].head
    zero = as_dict(as_dict(head.get("ds_config")).get("zero_optimization")).get("stage")
    stage = ranks[0].stage if ranks[0].optim else zero
    counts = ranks[0].optim[0].get("partition_count") if ranks[0].optim else None
    world = len(ranks[0].optim) or head.get("dp_world_size")
    layout: dict[str, Any] = {"zero_stage": stage, "dp": world, "tp": tp, "pp": len(ranks) // tp}
    if isinstance(counts, list) and counts and isinstance(world, int):
        layout["ep"] = world // min(counts)
    return layout
