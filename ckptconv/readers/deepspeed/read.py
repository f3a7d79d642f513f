"""Read a DeepSpeed checkpoint of any ZeRO stage into named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.checkpoint import Checkpoint, Weights
from ckptconv.readers.deepspeed.assemble import Reading, aliases_of, assemble, tied_layers, training_dtype
from ckptconv.readers.deepspeed.find import TagFiles, find_run, sort_files
from ckptconv.readers.deepspeed.locate import (
    are_wanted,
    check_rounding,
    locate_masters,
    module_of,
    stage0_optimizers,
    tensors_of,
)
from ckptconv.readers.deepspeed.masters import Master
from ckptconv.readers.deepspeed.megatron import named_alike
from ckptconv.readers.deepspeed.options import DeepSpeedOptions
from ckptconv.readers.deepspeed.parallel import join_tensor_parallel
from ckptconv.readers.deepspeed.releases import buffers_of, saved_no_masters
from ckptconv.readers.deepspeed.stage0 import has_masters
from ckptconv.readers.deepspeed.states import ModelRank, as_dict, load, open_ranks, steps_of
from ckptconv.readers.deepspeed.universal import is_scrambled
from ckptconv.readers.sample import Sampler
from ckptconv.relations import Relation

__all__ = ["open_deepspeed"]


def open_deepspeed(path: Path, options: DeepSpeedOptions) -> Checkpoint:
    """Read a run, a tag folder or a file inside one.

    Raises:
        FormatError: if a file is damaged or of a form that is not supported.
        PlanError: if ranks are missing, disagree, or hold fewer elements than the parameters need.
    """
    run = find_run(path)
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
        tp, asked = _tensor_parallel(ranks, files), options.weights == "master"
        named = named_alike(reading, ranks, tp, asked=asked)
        relation = named if named is not None else _read_tensor_parallel(reading, ranks)
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
        terms=reading.terms,
        notes=tuple(reading.notes),
    )


def _weights_there(reading: Reading, ranks: list[ModelRank], *, asked: bool) -> Weights:
    """Return the weights that can be read: where there are no masters, the model's own are them.

    Raises:
        PlanError: if masters belong to the checkpoint but their files are not there.
    """
    if reading.weights == "model" or reading.files.universal or any(r.optim for r in ranks):
        return reading.weights
    if any(has_masters(state) for r in ranks for _, state, _ in stage0_optimizers(reading.files, r)):
        return "master"
    if (found := saved_no_masters(ranks)) is not None:
        raise PlanError(
            f"there are no fp32 masters: deepspeed {found} saved no optimizer states for bf16 at stage 0, "
            "nor at stage 1 with fp32 gradients (0.17.6 to 0.18.4)",
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
        module = module_of(reading, rank)
        masters, compared = (
            locate_masters(reading, rank, module) if are_wanted(reading, rank) else ({}, False)
        )
        located = {n: [m] for n, m in masters.items()}
        check_rounding(reading, rank, module, located)
        assemble(reading, rank, module, located, prefix=prefix, compared=compared)
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
    masters, _ = locate_masters(reading, head, {})
    module = tensors_of(reading, head.module or {})
    aliases = aliases_of(head, module, masters)
    known = {*masters, *aliases, *buffers_of(head)}
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
        module = module_of(reading, head)
    for index in sorted(files.layers):
        module |= {f"{index}.{n}": t for n, t in tensors_of(reading, load(files.layers[index][0])).items()}
    for key in sorted(files.experts):
        module |= tensors_of(reading, load(files.experts[key]))
    masters: dict[str, list[Master]] = {}
    compared = files.universal is not None and is_scrambled(head)
    for rank in ranks if files.universal is None else ranks[:1]:
        if are_wanted(reading, rank):
            found, of_rank = locate_masters(reading, rank, module)
            compared |= of_rank
            for name, master in found.items():
                masters.setdefault(name, []).append(master)
    ties: dict[str, list[str]] = {}
    if head.module is None:
        named = {n for rank in ranks for n in rank.param_names()}
        _check_layers(reading, named, module)
        ties = tied_layers(reading, module, named, masters)
    check_rounding(reading, head, module, masters)
    assemble(reading, head, module, masters, ties=ties, compared=compared)


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
