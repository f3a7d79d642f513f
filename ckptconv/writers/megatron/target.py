"""Lay a model out over the ranks of a Megatron run: as flags say, or as another checkpoint is."""

from __future__ import annotations

from dataclasses import fields, replace

from ckptconv.dialects import find_dialect_named
from ckptconv.dialects.spread import Layout
from ckptconv.errors import PlanError, UsageError
from ckptconv.families.detect import is_zero_centered
from ckptconv.parallel import Grid, chunk_order, stage_layers
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.options import declared, flag_of
from ckptconv.plans.request import Request
from ckptconv.plans.target import Laid, Target
from ckptconv.relations import Relation
from ckptconv.slots import Words
from ckptconv.slots.translate import some, to_slots
from ckptconv.writers.megatron.arguments import arguments_of, divisible, guessed, layout_alone, unsaid
from ckptconv.writers.megatron.files import as_laid_out, like_ranks
from ckptconv.writers.megatron.options import Grids, MegatronTarget

__all__ = ["alone", "as_found", "as_model", "lay_out"]


def lay_out(request: Request, model: Laid, like: Checkpoint | None) -> Target:
    """Lay slots out over ranks.

    Args:
        request: What is asked for.
        model: The model's slots; no head where it is tied.
        like: The checkpoint that is the model for it.

    Raises:
        UsageError: if flags do not go together.
        PlanError: if the model does not fit.
    """
    how: MegatronTarget = request.writing
    assert model.config is not None
    assert model.family is not None
    dims = model.family.dims(model.config)
    if like is not None:
        return _like(how, model, like)
    dialect = find_dialect_named(how.dialect or "core-te")
    grid = _grid(how, model)
    stages = stage_layers(grid, dims["layers"], counts=how.layers_per_stage or None, noop=how.noop_layers)
    unit = (how.vocab_divisible or divisible(dialect)) * grid.tp
    vocab = -(-dims["vocab"] // unit) * unit
    held = dict(model.tensors)
    order = chunk_order(grid)
    if model.tied and order[0] != order[-1]:
        held["head"] = model.tensors["embed"]
    experts = how.experts or ("grouped" if dialect.name == "core-te" else "sequential")
    layout = Layout(grid, stages, dialect, experts, how.mla == "split", vocab)
    args = layout_alone(layout, how, dims["layers"])
    gaps: list[str] = []
    if request.assets:
        args = arguments_of(layout, how, model, gaps)
    target = as_laid_out(layout, held, dims, args, model.source.iteration or 1)
    notes = (*guessed(model.family), *unsaid(gaps)) if request.assets else ()
    # Where the source's arguments say that norms are stored without their 1, they go on saying so.
    zero = model.source.table is not None and is_zero_centered(model.source.arguments, model.family)
    return replace(
        target,
        zero_centered=zero or model.family.zero_centered,
        as_model=dialect.table(Words()).as_model,
        notes=notes,
    )


def _like(how: MegatronTarget, model: Laid, like: Checkpoint) -> Target:
    alone(how)
    relation = as_model(model, like, ranks=True)
    target = like_ranks(like.relation, relation, like.ranks, like.data)
    return as_found(target, model, like)


def as_found(target: Target, model: Laid, like: Checkpoint) -> Target:
    """Give a target the element types of the checkpoint it is like, and its way of storing norms."""
    assert model.family is not None
    dtypes = {name: stored.dtype.name for name, stored in like.stored.items()}
    return replace(
        target,
        dtypes=target.dtypes or dtypes,
        zero_centered=is_zero_centered(like.arguments, model.family),
        as_model=like.table.as_model if like.table is not None else frozenset(),
    )


def alone(how: Grids) -> None:
    """Refuse flags that say what a checkpoint to be like says.

    Raises:
        UsageError: naming the first of them.
    """
    options = declared(type(how))
    given = [f.name for f in fields(how) if f.name != "like" and getattr(how, f.name) != f.default]
    said = [n for n in given if n in options and n != "max_shard_size"]
    if said:
        raise UsageError(
            f"{flag_of(said[0], options[said[0]])} does not go with --like, which takes it from a checkpoint",
            hint="leave one of the two out",
        )


def as_model(model: Laid, like: Checkpoint, *, ranks: bool) -> Relation:
    """Relate the tensors of a checkpoint to be like (left) to slots (right).

    Raises:
        UsageError: if it is none of Megatron's.
        PlanError: if it holds what has no name.
    """
    assert model.config is not None
    assert model.family is not None
    if like.table is None or bool(like.ranks) != ranks:
        kind = "checkpoint of ranks" if ranks else "torch_dist checkpoint"
        raise UsageError(f"--like: {like.data} is no {kind}", hint="name one, or leave --like out")
    dims = model.family.dims(model.config)
    if strange := like.table.with_own(dims).named(like.strange)[1]:
        raise PlanError(
            f"--like: unknown: {some(strange)}",
            where=like.data,
            hint="name a checkpoint of a plain model",
        )
    return to_slots(like.tensors, like.table, dims, what="the model")


def _grid(how: MegatronTarget, model: Laid) -> Grid:
    tp = how.tp or 1
    dualpipe = how.schedule == "dualpipev"
    if dualpipe and how.vpp not in (None, 2):
        raise UsageError("--schedule dualpipev has two chunks a stage; leave --vpp out")
    if (how.ep or 1) > 1 and not any(".moe." in s for s in model.tensors):
        raise UsageError(
            f"--ep {how.ep} spreads experts over ranks, but the model has none",
            hint="leave --ep out: Megatron refuses such a run too",
        )
    return Grid(
        tp,
        how.pp or 1,
        2 if dualpipe else how.vpp or 1,
        how.ep or 1,
        1 if how.extend_ep else how.etp or tp,
        how.extend_ep,
        dualpipe,
    )
