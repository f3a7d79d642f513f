"""Plan what is written as shards of ranks: from any source to Megatron's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ckptconv.containers.torch.picklevm import Global
from ckptconv.dialects import Dialect, dialects
from ckptconv.dialects.spread import Layout
from ckptconv.dtypes import DType
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError, UsageError
from ckptconv.families import Family
from ckptconv.families.arguments import arguments_from
from ckptconv.parallel import Grid, chunk_order, stage_layers
from ckptconv.places.places import place
from ckptconv.planning.model import is_zero_centered
from ckptconv.plans.checkpoint import Checkpoint, ReadOptions
from ckptconv.plans.request import ConvertOptions
from ckptconv.readers.registry import open_checkpoint
from ckptconv.relations import Relation, Spec
from ckptconv.slots import Dims
from ckptconv.slots.translate import some, to_slots
from ckptconv.writers.megatron import Target, as_laid_out, like

__all__ = ["as_stored", "follow_through", "retyped", "shard", "simple_arguments", "with_tied_head"]

# Arguments that say norms are stored without their 1; norms stay as they are between checkpoints of ranks.
_ZERO_CENTERED = ("apply_layernorm_1p", "layernorm_zero_centered_gamma", "add_rmsnorm_offset")


def shard(
    options: ConvertOptions,
    slots: Mapping[str, Spec],
    tied: bool,
    config: Mapping[str, Any],
    family: Family,
    source: Checkpoint,
) -> tuple[Target, Checkpoint | None]:
    """Lay slots out as the options say; return also the checkpoint that was the model for it.

    Args:
        options: The layout asked for.
        slots: Shape and dtype of what there is; no head where it is tied.
        tied: Whether head and embedding are one.
        config: The content of config.json.
        family: Its family.
        source: Where they are from: its arguments and iteration are taken over.

    Raises:
        UsageError: if flags do not go together.
        PlanError: if the model does not fit.
    """
    dims = family.dims(config)
    if options.like is not None:
        return _like(options, dims)
    dialect = _dialect(options.dialect or "core-te")
    grid = _grid(options)
    counts = options.layers_per_stage or None
    stages = stage_layers(grid, dims["layers"], counts=counts, noop=options.noop_layers)
    unit = (options.vocab_divisible or _divisible(dialect)) * grid.tp
    vocab = -(-dims["vocab"] // unit) * unit
    held = dict(slots)
    order = chunk_order(grid)
    if tied and order[0] != order[-1]:
        held["head"] = slots["embed"]
    experts = options.experts or ("grouped" if dialect.name == "core-te" else "sequential")
    layout = Layout(grid, stages, dialect, experts, options.mla == "split", vocab)
    args = _alone(layout, options, dims["layers"])
    if options.assets:
        args = _arguments(layout, options, slots, config, family, source)
    return as_laid_out(layout, held, dims, args, source.iteration or 1), None


def _alone(layout: Layout, options: ConvertOptions, layers: int) -> dict[str, Any]:
    """Return the arguments that tell how weights alone are laid out."""
    grid = layout.grid
    return {
        "num_layers": layers + len(options.noop_layers),
        "tensor_model_parallel_size": grid.tp,
        "pipeline_model_parallel_size": grid.pp,
        "virtual_pipeline_model_parallel_size": grid.vpp if grid.vpp > 1 else None,
        "expert_model_parallel_size": grid.ep,
        "expert_tensor_parallel_size": grid.etp,
        "noop_layers": ",".join(map(str, options.noop_layers)) or None,
        "schedules_method": options.schedule,
        "moe_tp_extend_ep": options.extend_ep,
    }


def _arguments(
    layout: Layout,
    options: ConvertOptions,
    slots: Mapping[str, Spec],
    config: Mapping[str, Any],
    family: Family,
    source: Checkpoint,
) -> dict[str, Any]:
    """Return what ``args`` is to say: the source's arguments, changed to the layout's."""
    grid, dialect = layout.grid, layout.dialect
    counts = options.layers_per_stage or None
    arguments = arguments_from(
        config,
        family,
        dialect=dialect.arguments,
        tp=grid.tp,
        pp=grid.pp,
        vpp=grid.vpp if grid.vpp > 1 else None,
        ep=grid.ep,
        etp=grid.etp,
        divisible=options.vocab_divisible or _divisible(dialect),
        padded_vocab=layout.vocab,
        dtype=slots["embed"].dtype,
        implementation="transformer_engine" if dialect.name.endswith("te") else "local",
        experts_form=_FORMS[layout.experts],
        mtp=len({s.split(".")[1] for s in slots if s.startswith("mtp.")}),
        layers_per_stage=counts if dialect.arguments == "mindspeed" else None,
        noop_layers=options.noop_layers,
        schedule=options.schedule,
        mla_mm_split=options.mla == "split",
        moe_tp_extend_ep=options.extend_ep,
    )
    arguments["use_legacy_models"] = dialect.name == "legacy"
    arguments["use_mcore_models"] = dialect.name != "legacy"
    if counts is not None and dialect.arguments == "megatron":
        arguments["pipeline_model_parallel_layout"] = _pipeline(
            [len(layout.stages[chunk]) for chunk in chunk_order(grid)], arguments["mtp_num_layers"] or 0
        )
    if source.table is not None and is_zero_centered(source.arguments, family):
        arguments |= {k: True for k in _ZERO_CENTERED if source.arguments.get(k) is True}
    args = {**simple_arguments(source.arguments), **arguments}
    if args.get("params_dtype") is not None:
        args["params_dtype"] = Global("torch", arguments["params_dtype"])
    return args


# What `arguments_from` calls the forms of experts.
_FORMS: Mapping[str, Literal["sequential", "grouped", "legacy_grouped"]] = {
    "sequential": "sequential",
    "grouped": "grouped",
    "legacy-grouped": "legacy_grouped",
}


def _divisible(dialect: Dialect) -> int:
    """Return what the rows of a rank's vocabulary are a multiple of by default."""
    return 128 if dialect.arguments == "megatron" else 1


def _pipeline(counts: Sequence[int], mtp: int) -> str:
    """Return the layers of each chunk as Megatron writes a layout: ``Et*3|t*5mL``."""
    chunks = [f"t*{n}" if n else "" for n in counts]
    return "E" + "|".join(chunks) + "m" * mtp + "L"


def _like(options: ConvertOptions, dims: Dims) -> tuple[Target, Checkpoint]:
    path = place(options.like or "")
    model = open_checkpoint(path, ReadOptions())
    if model.table is None or not model.ranks:
        raise UsageError(f"--like: {path} is no checkpoint of ranks", hint="name a Megatron or MindSpeed run")
    inner = to_slots(model.relation.right, model.table, dims, what="the model", passing=model.strange)
    if model.strange:
        raise PlanError(
            f"--like: unknown: {some(list(model.strange))}",
            where=path,
            hint="name a checkpoint of a plain model",
        )
    return like(model.relation, inner, model.ranks, model.data), model


def _dialect(name: str) -> Dialect:
    found = {d.name: d for d in dialects()}
    if name not in found:
        raise UsageError(f"no dialect {name!r}", hint=f"dialects: {', '.join(found)}")
    return found[name]


def _grid(options: ConvertOptions) -> Grid:
    sizes = dict(options.sizes)
    tp = sizes.get("tp", 1)
    dualpipe = options.schedule == "dualpipev"
    if dualpipe and sizes.get("vpp", 2) != 2:
        raise UsageError("--schedule dualpipev has two chunks a stage; leave --vpp out")
    return Grid(
        tp,
        sizes.get("pp", 1),
        2 if dualpipe else sizes.get("vpp", 1),
        sizes.get("ep", 1),
        1 if options.extend_ep else sizes.get("etp", tp),
        options.extend_ep,
        dualpipe,
    )


# MindSpeed's words for a layout, which Megatron's arguments would not overwrite.
_LAYOUT = ("noop_layers", "num_layer_list", "schedules_method", "mla_mm_split", "moe_tp_extend_ep")


def simple_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a source's arguments a target takes over: simple values that speak of no layout."""
    simple = (bool, int, float, str, list, type(None))
    return {k: v for k, v in arguments.items() if isinstance(v, simple) and k not in _LAYOUT}


def with_tied_head(relation: Relation, target: Relation) -> Relation:
    """Provide the head from the embedding where a target holds a copy and the source, tied, has none."""
    if "head" not in target.left or "head" in relation.right or "embed" not in relation.right:
        return relation
    embed = relation.right["embed"]
    copies = tuple(
        replace(p, right=replace(p.right, tensor="head"), right_copy=True)
        for p in relation.pairs
        if p.right.tensor == "embed" and not p.left_copy
    )
    return replace(relation, right={**relation.right, "head": embed}, pairs=relation.pairs + copies)


def retyped(relation: Relation, tensors: Mapping[str, Spec]) -> Relation:
    """Give a relation's left tensors these types, and each right tensor that of what it is made of.

    Raises:
        PlanError: if the left side is not these tensors.
    """
    if missing := sorted(relation.left.keys() - tensors.keys()):
        raise PlanError(
            f"the target needs {some(missing)}, which the source has not",
            hint="choose a model with the same layers, or another target",
        )
    if beyond := sorted(tensors.keys() - relation.left.keys()):
        raise PlanError(
            f"the target has no place for {some(beyond)}",
            hint="leave tensors out with --drop, or choose another target",
        )
    if wrong := [n for n, s in relation.left.items() if tensors[n].shape != s.shape]:
        n = wrong[0]
        raise PlanError(
            f"{n} is {list(tensors[n].shape)} in the source, {list(relation.left[n].shape)} in the target"
        )
    dtypes = {p.right.tensor: tensors[p.left.tensor].dtype for p in relation.pairs}
    right = {n: replace(s, dtype=dtypes.get(n, s.dtype)) for n, s in relation.right.items()}
    return replace(relation, left={n: tensors[n] for n in relation.left}, right=right)


def follow_through(via: Mapping[str, DType], relation: Relation) -> dict[str, DType]:
    """Return what tensors pass through on the way by the names they are given."""
    return {p.right.tensor: via[p.left.tensor] for p in relation.pairs if p.left.tensor in via}


def as_stored(relation: Relation, wanted: Mapping[str, Spec], dtype: str) -> Relation:
    """Give what is written the dtypes of the checkpoint that is the model, unless one is asked for."""
    if dtype != "keep":
        return relation
    right = {
        n: replace(s, dtype=wanted[n].dtype)
        if n in wanted and dtype_named(wanted[n].dtype).kind == dtype_named(s.dtype).kind == "float"
        else s
        for n, s in relation.right.items()
    }
    return replace(relation, right=right)
