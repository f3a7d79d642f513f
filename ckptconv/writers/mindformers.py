"""Choose names and packing of a MindFormers checkpoint that is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptconv.containers.stored import Stored
from ckptconv.dialects import Dialect
from ckptconv.dialects.mindformers import (
    CORE,
    GLM,
    LEGACY,
    MINDFORMERS,
    dialect_for,
    dialect_of,
)
from ckptconv.dialects.mindformers.entries import beside_weights
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError, UsageError
from ckptconv.families import Family
from ckptconv.places.places import place
from ckptconv.places.regular import read_bytes
from ckptconv.planning.model import Architecture
from ckptconv.planning.names import Named, name_tensors
from ckptconv.planning.settle import find_run, from_run, layouts, settled
from ckptconv.plans.checkpoint import Checkpoint, Note, ReadOptions
from ckptconv.plans.plan import AssetFile, Plan
from ckptconv.plans.request import ConvertOptions
from ckptconv.readers.registry import open_checkpoint
from ckptconv.relations import Spec
from ckptconv.slots import Words
from ckptconv.slots.translate import from_slots, some
from ckptconv.writers.megatron import Target, pad_vocabulary
from ckptconv.writers.megatron_ranks import as_stored, retyped
from ckptconv.writers.mindspore_files import Container, lay_out_files

__all__ = ["lay_out", "plan_merge"]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """How a target names and packs: the dialect's words, and of a checkpoint that is its model the rest."""

    dialect: Dialect
    words: Words
    like: Mapping[str, Spec]
    container: Container
    notes: tuple[Note, ...]
    assets: tuple[AssetFile, ...] = ()


def lay_out(
    options: ConvertOptions,
    slots: Mapping[str, Spec],
    tied: bool,
    config: Mapping[str, Any],
    family: Family,
    source: Checkpoint,
) -> tuple[Target, Checkpoint | None]:
    """Lay slots out as a checkpoint of MindFormers; return also the checkpoint that was the model for it.

    Args:
        options: The layout asked for.
        slots: Shape and dtype of what there is; no head where it is tied.
        tied: Whether head and embedding are one.
        config: The content of config.json.
        family: Its family.
        source: Where they are from.

    Raises:
        UsageError: if flags do not go together.
        PlanError: if the model does not fit.
    """
    dims = family.dims(config)
    chosen = _like(options) if options.like is not None else _chosen(options, slots, family)
    held = dict(slots)
    table = chosen.dialect.table(chosen.words)
    if chosen.like:
        found, unknown = table.named(chosen.like)
        unknown = [n for n in unknown if not chosen.dialect.is_ignored(n)]
        if unknown:
            raise PlanError(f"--like: unknown: {some(unknown)}", where=options.like)
        needed = {s for f in found for s in f.slots}
        if tied and "head" in needed:
            held["head"] = slots["embed"]
        specs = {f.name: chosen.like[f.name] for f in found}
        whole = table.relation(specs, found, dims, "the model")
        relation = pad_vocabulary(whole.invert())
    else:
        if tied and chosen.dialect is LEGACY:  # its converters write the head of a tied model too
            held["head"] = slots["embed"]
        relation = from_slots(held, table, dims, who=f"MindFormers ({chosen.dialect.name})")
    relation = as_stored(retyped(relation, held), chosen.like, options.dtype)
    made, files, notes = lay_out_files(relation.right, chosen.container, options.strategy)
    stored = {n: Stored(dtype_named(s.dtype), s.shape, ()) for n, s in made.right.items()}
    target = Target(relation.compose(made), lambda tensors: files, chosen.assets, (*chosen.notes, *notes))
    return target, replace(source, stored=stored)


def _like(options: ConvertOptions) -> _Chosen:
    path = place(options.like or "")
    model = open_checkpoint(path, ReadOptions())
    dialect = dialect_of(model.tensors) if model.producer == "mindspore" else None
    if dialect is None:
        raise UsageError(
            "--like: no checkpoint of MindFormers", where=path, hint="name a .ckpt or its folder"
        )
    given = _dialect(options.dialect) if options.dialect is not None else dialect
    if given is not dialect or options.qkv_concat or options.experts or options.mla:
        raise UsageError(
            "--like takes names and packing from a checkpoint; leave the flags that say them out"
        )
    yaml, run = find_run(model, None)
    flags = layouts(options)
    words, notes = settled(dialect, model.tensors, run, flags)
    container: Container = "safetensors" if "safetensors" in model.format else "ckpt"
    lost = [n for n in model.tensors if dialect.is_ignored(n)]
    if lost:
        notes.append(Note("info", f"--like: buffers are not written: {some(lost)}"))
    assets: tuple[AssetFile, ...] = ()
    if yaml is not None:
        if any(from_run(run, word) not in (None, value) for word, value in flags.items()):
            notes.append(Note("info", f"--like: {yaml.name} says another layout, so it is not written"))
        else:  # what it alone says, such as use_rearrange_rope, has to be known of what is written too
            assets = (AssetFile(yaml.name, str(yaml), read_bytes(yaml, within=yaml.parent)),)
    return _Chosen(dialect, words, model.tensors, _container(options) or container, tuple(notes), assets)


def _chosen(options: ConvertOptions, slots: Mapping[str, Spec], family: Family) -> _Chosen:
    """Choose the form MindFormers' own converter writes, where the flags do not say another."""
    dialect = _dialect(options.dialect) if options.dialect is not None else dialect_for(family.name)
    here = Words.of_slots(slots)
    latent = "mla" in here.names
    routed = any(s.endswith(".moe.router_bias") or ".moe.shared." in s for s in slots)
    flags = {"qkv_contiguous": False, "mlp_contiguous": dialect is CORE and latent, **layouts(options)}
    words = {word for word, on in flags.items() if on}
    if options.mla == "split":
        if dialect is not CORE or not latent:
            raise UsageError("--mla split is for latent attention under core names")
        words.add("mla_split")
    if options.qkv_concat:
        words |= {"qkv_concat", "mlp_concat"}
    if dialect is LEGACY:
        words |= {"routed"} if routed else set()
        words |= {"gmm"} if options.experts == "grouped" else set()
        if family.name == "internlm2":
            words |= {"qkv_concat", "wqkv"}
    if dialect is CORE:
        words |= {"sequential"} if options.experts == "sequential" else set()
        words |= {"wide"} if latent else set()
    if dialect is GLM and layouts(options):
        raise UsageError("--qkv-layout and --mlp-layout: GLM's tensors are contiguous; leave them out")
    return _Chosen(dialect, dialect.reading(here).beside(words), {}, _container(options) or "ckpt", ())


def _dialect(name: str) -> Dialect:
    found = next((s for s in MINDFORMERS if name in (s.name, s.name.removeprefix("mindformers-"))), None)
    if found is None:
        raise UsageError(f"no dialect {name!r}", hint="dialects: " + ", ".join(s.name for s in MINDFORMERS))
    return found


def _container(options: ConvertOptions) -> Container | None:
    if options.format == "bin":
        raise UsageError("MindFormers has no bin files", hint="give --format ckpt or safetensors")
    return options.format


def plan_merge(checkpoint: Checkpoint, options: ConvertOptions) -> Plan:
    """Plan a checkpoint with the names and packing it has: ranks merged, or cut as a strategy says.

    Raises:
        UsageError: if a flag asks for another packing.
        PlanError: if the strategy does not fit.
    """
    if layouts(options):
        raise UsageError(
            "the source's own packing is kept, so --qkv-layout and --mlp-layout say nothing",
            hint="leave them out, or give --like or --dialect to pack anew",
        )
    states = [re.escape(n) for n in checkpoint.tensors if beside_weights(n) is not None]
    plain = replace(checkpoint, table=None)
    named: Named = name_tensors(plain, options, Architecture(None, None, pinned=("|".join(states),)))
    made, files, notes = lay_out_files(named.relation.right, _container(options) or "ckpt", options.strategy)
    relation = named.relation.compose(made)
    relation.check()
    used = {p.left.tensor for p in relation.pairs}
    casts = {p.right.tensor: named.casts[p.left.tensor] for p in made.pairs if p.left.tensor in named.casts}
    return Plan(
        source=str(checkpoint.root),
        producer=checkpoint.producer,
        relation=relation,
        stored={k: s for k, s in checkpoint.stored.items() if k in used},
        casts=casts,
        files=files,
        steps=named.steps,
        inputs=checkpoint.files,
        notes=tuple((n.level, n.text) for n in (*checkpoint.notes, *notes)),
    )
