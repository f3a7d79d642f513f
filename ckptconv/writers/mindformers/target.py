"""Choose names and packing of a MindFormers checkpoint that is written."""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.dialects import Dialect
from ckptconv.dialects.mindformers import (
    CORE,
    GLM,
    LEGACY,
    MINDFORMERS,
    dialect_for,
    dialect_of,
)
from ckptconv.dialects.mindformers.settle import find_run, from_run, layouts, settled
from ckptconv.errors import PlanError, UsageError
from ckptconv.families import Family
from ckptconv.places.regular import read_bytes
from ckptconv.plans.checkpoint import Checkpoint, Note, beside_of
from ckptconv.plans.plan import AssetFile
from ckptconv.plans.request import Request
from ckptconv.plans.target import Laid, Target
from ckptconv.records import dataclass
from ckptconv.relations import Spec
from ckptconv.slots import Words
from ckptconv.slots.translate import as_stored, from_slots, pad_vocabulary, retyped, some
from ckptconv.writers.mindformers.files import Container, lay_out_files
from ckptconv.writers.mindformers.options import MindFormersTarget

__all__ = ["lay_out"]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """How a target names and packs: the dialect's words, and of a checkpoint that is its model the rest."""

    dialect: Dialect
    words: Words
    like: Mapping[str, Spec]
    container: Container
    notes: tuple[Note, ...]
    assets: tuple[AssetFile, ...] = ()


def lay_out(request: Request, model: Laid, like: Checkpoint | None) -> Target:
    """Lay slots out as a checkpoint of MindFormers, or tensors that have its names already as they are.

    Args:
        request: What is asked for.
        model: The model's slots, no head where it is tied; or the source's tensors under its own names.
        like: The checkpoint that is the model for it.

    Raises:
        UsageError: if flags do not go together.
        PlanError: if the model does not fit.
    """
    how: MindFormersTarget = request.writing
    if model.keeps:
        if _layouts(how):
            raise UsageError(
                "the source's own packing is kept, so --qkv-layout and --mlp-layout say nothing",
                hint="leave them out, or give --like or --dialect to pack anew",
            )
        made, files, notes = lay_out_files(model.tensors, how.format or "ckpt", how.strategy)
        return Target(lambda tensors: files, made, notes=tuple(notes))
    assert model.config is not None
    assert model.family is not None
    dims = model.family.dims(model.config)
    chosen = _like(how, like) if like is not None else _chosen(how, model.tensors, model.family)
    held = dict(model.tensors)
    table = chosen.dialect.table(chosen.words)
    if chosen.like:
        found, unknown = table.named(chosen.like)
        unknown = [n for n in unknown if not chosen.dialect.is_ignored(n)]
        if unknown:
            raise PlanError(f"--like: unknown: {some(unknown)}", where=how.like)
        needed = {s for f in found for s in f.slots}
        if model.tied and "head" in needed:
            held["head"] = model.tensors["embed"]
        specs = {f.name: chosen.like[f.name] for f in found}
        whole = table.relation(specs, found, dims, "the model")
        relation = pad_vocabulary(whole.invert())
    else:
        if model.tied and chosen.dialect is LEGACY:  # its converters write the head of a tied model too
            held["head"] = model.tensors["embed"]
        relation = from_slots(held, table, dims, who=f"MindFormers ({chosen.dialect.name})")
    relation = retyped(relation, held)
    if request.dtype == "keep":
        relation = as_stored(relation, {n: s.dtype for n, s in chosen.like.items()})
    made, files, notes = lay_out_files(relation.right, chosen.container, how.strategy)
    dtypes = {n: s.dtype for n, s in made.right.items()} if chosen.like else {}
    return Target(
        lambda tensors: files, relation.compose(made), chosen.assets, (*chosen.notes, *notes), dtypes
    )


def _like(how: MindFormersTarget, opened: Checkpoint) -> _Chosen:
    weights = {n: s for n, s in opened.tensors.items() if n not in opened.pinned}
    dialect = dialect_of(weights) if opened.producer == "mindspore" else None
    if dialect is None:
        raise UsageError(
            "--like: no checkpoint of MindFormers", where=how.like, hint="name a .ckpt or its folder"
        )
    given = _dialect(how.dialect) if how.dialect is not None else dialect
    if given is not dialect or how.qkv_concat or how.experts or how.mla:
        raise UsageError(
            "--like takes names and packing from a checkpoint; leave the flags that say them out"
        )
    yaml, run = find_run(beside_of(opened), None)
    flags = _layouts(how)
    words, notes = settled(dialect, weights, run, flags)
    container: Container = "safetensors" if "safetensors" in opened.format else "ckpt"
    lost = [n for n in weights if dialect.is_ignored(n)]
    if lost:
        notes.append(Note("info", f"--like: buffers are not written: {some(lost)}"))
    assets: tuple[AssetFile, ...] = ()
    if yaml is not None:
        if any(from_run(run, word) not in (None, value) for word, value in flags.items()):
            notes.append(Note("info", f"--like: {yaml.name} says another layout, so it is not written"))
        else:  # what it alone says, such as use_rearrange_rope, has to be known of what is written too
            assets = (AssetFile(yaml.name, str(yaml), read_bytes(yaml, within=yaml.parent)),)
    return _Chosen(dialect, words, weights, how.format or container, tuple(notes), assets)


def _chosen(how: MindFormersTarget, slots: Mapping[str, Spec], family: Family) -> _Chosen:
    """Choose the form MindFormers' own converter writes, where the flags do not say another."""
    dialect = _dialect(how.dialect) if how.dialect is not None else dialect_for(family.name)
    here = Words.of_slots(slots)
    latent = "mla" in here.names
    routed = any(s.endswith(".moe.router_bias") or ".moe.shared." in s for s in slots)
    flags = {"qkv_contiguous": False, "mlp_contiguous": dialect is CORE and latent, **_layouts(how)}
    words = {word for word, on in flags.items() if on}
    if how.mla == "split":
        if dialect is not CORE or not latent:
            raise UsageError("--mla split is for latent attention under core names")
        words.add("mla_split")
    if how.qkv_concat:
        words |= {"qkv_concat", "mlp_concat"}
    if dialect is LEGACY:
        words |= {"routed"} if routed else set()
        words |= {"gmm"} if how.experts == "grouped" else set()
        if family.name == "internlm2":
            words |= {"qkv_concat", "wqkv"}
    if dialect is CORE:
        words |= {"sequential"} if how.experts == "sequential" else set()
        words |= {"wide"} if latent else set()
    if dialect is GLM and _layouts(how):
        raise UsageError("--qkv-layout and --mlp-layout: GLM's tensors are contiguous; leave them out")
    return _Chosen(dialect, dialect.reading(here).beside(words), {}, how.format or "ckpt", ())


def _dialect(name: str) -> Dialect:
    found = next((s for s in MINDFORMERS if name in (s.name, s.name.removeprefix("mindformers-"))), None)
    if found is None:
        raise UsageError(f"no dialect {name!r}", hint="dialects: " + ", ".join(s.name for s in MINDFORMERS))
    return found


def _layouts(how: MindFormersTarget) -> dict[str, bool]:
    return layouts(how.qkv_layout, how.mlp_layout)
