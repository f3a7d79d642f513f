"""Read a DeepSpeed checkpoint of any ZeRO stage into named tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.torchtensors import refuse_odd
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.checkpoint import Checkpoint, ReadOptions, Weights
from ckptconv.readers.deepspeed.assemble import (
    Reading,
    aliases_of,
    assemble,
    rename_by_values,
    tied_layers,
    training_dtype,
)
from ckptconv.readers.deepspeed.find import TagFiles, find_run, sort_files
from ckptconv.readers.deepspeed.experts import Experts
from ckptconv.readers.deepspeed.flat import flat_masters
from ckptconv.readers.deepspeed.masters import Master
from ckptconv.readers.deepspeed.parallel import join_tensor_parallel
from ckptconv.readers.deepspeed.releases import orders_by_module, saved_no_masters
from ckptconv.readers.deepspeed.stage0 import has_masters, nameless_masters
from ckptconv.readers.deepspeed.states import ModelRank, as_dict, load, open_ranks, steps_of
from ckptconv.readers.deepspeed.universal import is_scrambled, universal_masters
from ckptconv.readers.deepspeed.zero3 import zero3_masters
from ckptconv.readers.sample import Sampler
from ckptconv.relations import Drop, Relation

__all__ = ["open_deepspeed"]

_SAMPLED = 16  # masters compared with their 16-bit weights while a checkpoint is opened


def open_deepspeed(path: Path, options: ReadOptions) -> Checkpoint:
    """Read a run, a tag folder or a file inside one.

    Raises:
        FormatError: if a file is damaged or of a form that is not supported.
        PlanError: if ranks are missing, disagree, or hold fewer elements than the parameters need.
    """
    run = find_run(path, options.tag)
    files = sort_files(run.tag)
    reading = Reading(run, files, options.weights or "master", notes=list(run.notes))
    ranks = open_ranks(files, optimizer=reading.weights == "master")
    for rank in ranks:
        _check_steps(rank, reading.sampler)
    reading.weights = _weights_there(reading, ranks, asked=options.weights == "master")
    merged = files.universal is not None and reading.weights == "master"
    if _tensor_parallel(ranks, files) > 1 and merged:
        _read_merged(reading, ranks[0])
        relation = reading.graph.relation()
    elif _tensor_parallel(ranks, files) > 1:
        relation = _read_tensor_parallel(reading, ranks)
    else:
        _read_stages(reading, ranks)
        relation = reading.graph.relation()
    if not relation.right and not reading.unresolved:
        raise FormatError("these model states hold no tensors", where=ranks[0].head_path)
    for file in files.all():
        reading.graph.touch(file)
    head = ranks[0].head
    steps = head.get("global_steps")
    stored = sum(s.nbytes for s in reading.graph.stored.values())
    return Checkpoint(
        root=run.root,
        data=run.tag,
        producer="deepspeed",
        format=_format(ranks, files),
        weights=reading.weights,
        stored=reading.graph.stored,
        relation=relation,
        files=reading.graph.files,
        versions={"deepspeed": str(head["ds_version"])} if head.get("ds_version") else {},
        layout=_layout(ranks, files),
        iteration=steps if isinstance(steps, int) else None,
        via=reading.via,
        aliases=reading.aliases,
        buffers=frozenset(reading.buffers),
        left_out={"optimizer states and the rest": max(0, sum(s.size for s in reading.graph.files) - stored)},
        unresolved=tuple(reading.unresolved),
        notes=tuple(reading.notes),
    )


def _weights_there(reading: Reading, ranks: list[ModelRank], *, asked: bool) -> Weights:
    """Return the weights that can be read: where there are no masters, the model's own are them.

    Raises:
        PlanError: if masters belong to the checkpoint but their files are not there.
    """
    if reading.weights == "model" or reading.files.universal or any(r.optim for r in ranks):
        return reading.weights
    if any(has_masters(state) for r in ranks for _, state, _ in _stage0_optimizers(reading.files, r)):
        return "master"
    if (found := saved_no_masters(ranks)) is not None:
        raise PlanError(
            f"there are no fp32 masters: deepspeed {found} saved no optimizer states for bf16 at stage 0, nor at "
            "stage 1 with fp32 gradients (0.17.6 to 0.18.4)",
            where=reading.run.tag,
            hint="take the 16-bit weights, which are all that was saved (--weights model)",
        )
    head = ranks[0].head
    stage = as_dict(as_dict(head.get("ds_config")).get("zero_optimization")).get("stage")
    partitioned = any(r.head.get("param_shapes") is not None for r in ranks)
    # BF16_Optimizer kept its masters in partition files at stage 0 as well (0.6.2 to 0.18).
    elsewhere = head.get("optimizer") is None and training_dtype(ranks[0]) is not None
    if partitioned or elsewhere or (isinstance(stage, int) and stage > 0):
        raise PlanError(
            "the optimizer states are missing: they hold the fp32 masters, and no *_optim_states.pt is here",
            where=reading.run.tag,
            hint="copy every rank's *_optim_states.pt, or take the 16-bit weights (--weights model)",
        )
    dtypes = {t.dtype for r in ranks for t in (r.module or {}).values() if isinstance(t, FileTensor)}
    if BY_NAME["float32"] not in dtypes:
        if asked:
            raise PlanError(
                "no fp32 masters are stored in this checkpoint",
                where=reading.run.tag,
                hint="leave out --weights",
            )
        reading.note("info", "no fp32 masters are stored; the weights are those the model ran with")
    return "model"


def _stage0_optimizers(files: TagFiles, rank: ModelRank) -> Iterator[tuple[int, Mapping[str, Any], Path]]:
    """Yield the optimizer states of stage 0 by expert-parallel rank; without experts there is one."""
    experts = files.expert_optim.get(rank.mp, {})
    for ep, path in sorted(experts.items()):
        yield ep, as_dict(load(path).get("optimizer")), path
    if not experts:
        yield 0, as_dict(rank.head.get("optimizer")), rank.head_path


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
                f"{path.name} is of optimizer step {found:g}, {known[1].name} of step {known[0]:g}",
                where=path,
                hint="the files are of different saves; copy one whole save",
            )
        known = (float(found), path)


def _tensor_parallel(ranks: list[ModelRank], files: TagFiles) -> int:
    """Return the tensor-parallel size: what the file says, else what the files' names and kinds show."""
    sizes = as_dict(ranks[0].head.get("checkpoint_parallel_dimensions"))
    if isinstance(sizes.get("tp_degree"), int) and sizes["tp_degree"] > 0:
        return int(sizes["tp_degree"])
    if files.layers:
        return max(len(tp) for tp in files.layers.values())
    return len(ranks) if ranks[0].module is not None else 1


def _read_tensor_parallel(reading: Reading, ranks: list[ModelRank]) -> Relation:
    """Read every rank's shards, then join them."""
    if reading.files.layers or reading.files.experts:
        raise FormatError(
            "tensor parallel together with pipeline stages or experts is not supported",
            where=reading.run.tag,
        )
    found = (as_dict(r.head.get("universal_checkpoint_info")) for r in ranks)
    info = next((i for i in found if i), None)
    if info is None:
        raise PlanError(
            "these files do not say along which axis tensor parallelism cut each parameter "
            "(no 'universal_checkpoint_info', as with Megatron-DeepSpeed)",
            where=reading.run.tag,
        )
    prefixes = [f"mp_rank_{r.mp:02d}/" for r in ranks]
    for rank, prefix in zip(ranks, prefixes, strict=True):
        module = _module(reading, rank)
        masters, by_values = _masters(reading, rank, module) if _wanted(reading, rank) else ({}, False)
        located = {n: [m] for n, m in masters.items()}
        _check_rounding(reading, rank, module, located)
        assemble(reading, rank, module, located, prefix=prefix, compared=by_values)
    bare = {p + n: n for p in prefixes for n in ranks[0].module or {}}
    reading.aliases = {bare.get(a, a): bare.get(b, b) for a, b in reading.aliases.items()}
    reading.buffers = {bare.get(b, b) for b in reading.buffers}
    reading.via = {bare.get(n, n): d for n, d in reading.via.items()}
    reading.unresolved = sorted({bare.get(n, n) for n in reading.unresolved})
    shards = reading.graph.relation()
    whole = join_tensor_parallel(shards, prefixes, info, ranks[0].head_path)
    whole.check()
    return shards.compose(whole)


def _read_merged(reading: Reading, head: ModelRank) -> None:
    """Read a universal checkpoint of a tensor-parallel run, whose masters are whole.

    Raises:
        PlanError: if there are frozen parameters, of which only the ranks' shards are stored.
    """
    masters, _ = _masters(reading, head, {})
    module = _tensors(reading, head.module or {})
    aliases = aliases_of(head, module, masters)
    known = {*masters, *aliases, *(head.head.get("buffer_names") or [])}
    frozen = sorted(n for n in module if n not in known)
    if frozen:
        raise PlanError(
            f"the universal checkpoint lacks {frozen[0]}, which is frozen and cut over tensor-parallel ranks",
            where=reading.run.tag,
            hint="take the 16-bit weights (--weights model)",
        )
    assemble(reading, head, module, {n: [m] for n, m in masters.items()})


def _read_stages(reading: Reading, ranks: list[ModelRank]) -> None:
    """Read all pipeline stages, or the only rank, as one model."""
    head, files = ranks[0], reading.files
    module: dict[str, FileTensor] = {}
    if head.module is not None:
        module = _module(reading, head)
    for index in sorted(files.layers):
        module |= {f"{index}.{n}": t for n, t in _tensors(reading, load(files.layers[index][0])).items()}
    for key in sorted(files.experts):
        module |= _tensors(reading, load(files.experts[key]))
    masters: dict[str, list[Master]] = {}
    compared = files.universal is not None and is_scrambled(head)
    for rank in ranks if files.universal is None else ranks[:1]:
        if _wanted(reading, rank):
            found, by_values = _masters(reading, rank, module)
            compared |= by_values
            for name, master in found.items():
                masters.setdefault(name, []).append(master)
    ties: dict[str, list[str]] = {}
    if head.module is None:
        named = {n for rank in ranks for n in rank.param_names()}
        _check_layers(reading, named, module)
        ties = tied_layers(reading, module, named, masters)
    _check_rounding(reading, head, module, masters)
    assemble(reading, head, module, masters, ties=ties, compared=compared)


def _check_rounding(
    reading: Reading, rank: ModelRank, module: Mapping[str, FileTensor], masters: Mapping[str, list[Master]]
) -> None:
    """Check a sample of masters against the 16-bit weights they round to after every training step.

    Files of two saves have the same names and shapes; only their values tell them apart.
    """
    if rank.sharded:
        return  # placeholders
    both = [n for n, located in masters.items() if n in module and module[n].shape == located[0].shape]
    for name in both[:: max(1, len(both) // _SAMPLED)]:
        boxes, tensor = masters[name][0].boxes, module[name]
        if len(boxes) != 1 or not boxes[0].is_contiguous or not tensor.is_contiguous:
            continue
        box = boxes[0]
        stored = reading.graph.stored[box.tensor]
        apart = reading.sampler.apart(stored, box.offset, tensor, count=64)
        if apart is not None:
            at = box.offset + apart
            path, byte, _ = next(stored.spans(at, at + 1))
            index, step = [int(i) for i in np.unravel_index(apart, tensor.shape)], tensor.dtype.itemsize
            raise PlanError(
                f"the fp32 master of {name}{index} does not round to its 16-bit weights",
                where=f"{path} at byte {byte}, and {tensor.path} at byte {tensor.offset + apart * step}",
                hint="optimizer and model states are of different saves; copy one whole save, or take the "
                "16-bit weights (--weights model)",
            )


def _check_layers(reading: Reading, named: set[str], module: Mapping[str, FileTensor]) -> None:
    """Check that every trainable parameter of a pipeline lies in the file of its layer."""
    absent = sorted(n for n in named if n not in module and not n.startswith("tied_modules."))
    if absent:
        layer = absent[0].split(".")[0]
        raise PlanError(
            f"parameter {absent[0]} is in no layer file: layer_{layer:0>2}-model_states.pt is missing, or of "
            "another model",
            where=reading.run.tag,
            hint="copy the layer_*-model_states.pt files of every stage",
        )


def _wanted(reading: Reading, rank: ModelRank) -> bool:
    """Whether the masters are to be located: always where there is nothing else, as in stage 3."""
    return reading.weights == "master" or rank.sharded or bool(rank.optim and rank.unsaved())


def _module(reading: Reading, rank: ModelRank) -> dict[str, FileTensor]:
    """Return what the module saves of its parameters, and frozen ones that stage 2 saves beside it only."""
    module = _tensors(reading, rank.module or {})
    if not rank.sharded:
        for name, tensor in as_dict(rank.head.get("frozen_param_fragments")).items():
            if isinstance(tensor, FileTensor):
                module.setdefault(rank.saved(name), tensor)
    return module


def _tensors(reading: Reading, module: Mapping[Any, Any]) -> dict[str, FileTensor]:
    """Return a state dict's tensors; entries that are none (extra states) are said.

    Raises:
        FormatError: if one is of a kind that cannot be located.
    """
    for name, entry in module.items():
        refuse_odd(str(name), entry, reading.run.tag)
    others = [str(k) for k, v in module.items() if not isinstance(v, FileTensor) and v is not None]
    if others:
        more = ", ..." if len(others) > 8 else ""
        reading.note("warning", f"no tensors, so left out: {', '.join(others[:8])}{more}")
    return {str(k): v for k, v in module.items() if isinstance(v, FileTensor)}


def _masters(
    reading: Reading, rank: ModelRank, module: Mapping[str, FileTensor]
) -> tuple[dict[str, Master], bool]:
    """Locate the rank's fp32 masters, however its optimizer keeps them; say whether values named them."""
    if reading.files.universal is not None:
        if is_scrambled(rank):
            text = (
                "round_robin_gradients scrambled this universal checkpoint; its parameters are put in order"
            )
            reading.note("warning", f"{text} again, and compared with the 16-bit weights")
        return universal_masters(reading.files.universal, rank, reading.graph), False
    if rank.stage == 3:
        return zero3_masters(rank, reading.graph), False
    if not rank.optim:
        return _stage0_masters(reading, rank, module), True
    others = _buffers(rank) | aliases_of(rank, module).keys()
    masters, by_values = flat_masters(rank, reading.graph, module, others, reading.sampler)
    if by_values:
        why = "is not that of the masters" if orders_by_module(rank) else "is not in the files"
        text = f"the order of the parameters {why} in this release: each master was given to the parameter it "
        reading.note("guess", text + "rounds to, and is compared with it")
    masters = rename_by_values(reading, rank, module, masters, others)
    if reading.weights == "master":
        return masters, by_values
    for name in [n for n in masters if n in module]:
        boxes = masters.pop(name).boxes
        reading.graph.left_only += [Drop(box, "the 16-bit value is read") for box in boxes]
    return masters, by_values


def _buffers(rank: ModelRank) -> frozenset[str]:
    return frozenset(str(b) for b in rank.head.get("buffer_names") or ())


def _stage0_masters(reading: Reading, rank: ModelRank, module: Mapping[str, FileTensor]) -> dict[str, Master]:
    """Name the masters of stage 0; with experts, those of each expert-parallel rank in turn."""
    skipped = _buffers(rank) | aliases_of(rank, module).keys()
    candidates = {n: t for n, t in module.items() if n not in skipped and t.dtype.kind == "float"}
    optimizers = list(_stage0_optimizers(reading.files, rank))
    experts = Experts(candidates)
    out: dict[str, Master] = {}
    for ep, state, path in optimizers:
        if not has_masters(state):
            continue
        text = "stage 0 masters carry no names: each was given to the parameter it rounds to, and is compared"
        reading.note("guess", text)
        prefix = f"mp_rank_{rank.mp:02d}/" + (f"expp_rank_{ep}/" if len(optimizers) > 1 else "")
        mine = {n: t for n, t in candidates.items() if experts.of_rank(n, len(optimizers)) in (None, ep)}
        for name, master in nameless_masters(
            state, mine, reading.graph, prefix, reading.sampler, path
        ).items():
            if name in out:  # dense parameters are repeated by every expert-parallel rank
                reading.graph.pairs += master.pairs(name, copy=True)
            else:
                out[name] = master
    return out


def _format(ranks: list[ModelRank], files: TagFiles) -> str:
    if files.universal is not None:
        return "universal checkpoint"
    stage = _zero_stage(ranks[0])
    kind = f"ZeRO stage {stage}" if stage else "without ZeRO"
    return kind + (", pipeline" if files.layers else "") + (", mixture of experts" if files.experts else "")


def _zero_stage(rank: ModelRank) -> object:
    if rank.optim:
        return rank.stage
    return as_dict(as_dict(rank.head.get("ds_config")).get("zero_optimization")).get("stage", 0)


def _layout(ranks: list[ModelRank], files: TagFiles) -> dict[str, Any]:
    tp = _tensor_parallel(ranks, files)
    world = len(ranks[0].optim) or ranks[0].head.get("dp_world_size")
    layout: dict[str, Any] = {
        "zero_stage": _zero_stage(ranks[0]),
        "dp": world,
        "tp": tp,
        "pp": len(ranks) // tp,
    }
    counts = ranks[0].optim[0].get("partition_count") if ranks[0].optim else None
    if isinstance(counts, list) and counts and isinstance(world, int):
        layout["ep"] = world // min(counts)
    return layout
