"""Plan what is written as a ``torch_dist`` checkpoint: from any source to Megatron's default format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ckptconv.containers.dcp.dcp import open_dcp
from ckptconv.containers.stored import Stored
from ckptconv.containers.torch.namespaces import namespace
from ckptconv.containers.torch.picklevm import Global
from ckptconv.dialects.core import CORE_LOCAL, CORE_TE
from ckptconv.dialects.spread import Layout
from ckptconv.dialects.stacked import unstacked
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError, UsageError
from ckptconv.families import Family
from ckptconv.families.arguments import arguments_from
from ckptconv.numbers.sizes import parse_size
from ckptconv.parallel import Grid, stage_layers
from ckptconv.places.places import place
from ckptconv.plans.checkpoint import Checkpoint, ReadOptions
from ckptconv.plans.request import ConvertOptions
from ckptconv.readers.registry import open_checkpoint
from ckptconv.readers.torch_dist import FORMAT, common_state, weights_of
from ckptconv.relations import Spec
from ckptconv.slots import Dims
from ckptconv.slots.translate import some, to_slots
from ckptconv.writers.megatron import Target, pad_vocabulary
from ckptconv.writers.megatron import _harmless as harmless
from ckptconv.writers.megatron_ranks import simple_arguments
from ckptconv.writers.torch_dist import Saved, as_saved, as_target

__all__ = ["distribute"]

# Fields of the options that cut a model, which this format does not.
_UNUSED: Final = {
    "layers_per_stage": "--layers-per-stage",
    "noop_layers": "--noop-layers",
    "schedule": "--schedule",
    "experts": "--experts",
    "mla": "--mla",
    "extend_ep": "--moe-tp-extend-ep",
}


def distribute(
    options: ConvertOptions,
    slots: Mapping[str, Spec],
    tied: bool,
    config: Mapping[str, Any],
    family: Family,
    source: Checkpoint,
) -> tuple[Target, Checkpoint | None]:
    """Lay slots out as one ``torch_dist`` checkpoint, which loads in any parallel layout.

    Args:
        options: Parallel sizes go into the arguments and the padding of the vocabulary alone.
        slots: Shape and dtype of what there is; no head where it is tied.
        tied: Whether head and embedding are one.
        config: The content of config.json.
        family: Its family.
        source: Where they are from: its arguments and iteration are taken over.

    Returns:
        The target; and with ``--like`` the model, whose ``stored`` have the names of the target's tensors.

    Raises:
        UsageError: if flags do not go together.
        PlanError: if the model does not fit.
    """
    if given := [flag for name, flag in _UNUSED.items() if getattr(options, name)]:
        raise UsageError(
            f"{given[0]} does not go with --to torch_dist", hint="its tensors are whole; leave it out"
        )
    dialect = next((d for d in (CORE_TE, CORE_LOCAL) if d.name == (options.dialect or CORE_TE.name)), None)
    if dialect is None:
        raise UsageError(
            f"torch_dist does not have the names of {options.dialect}",
            hint=f"choose {CORE_TE.name} or {CORE_LOCAL.name}, for the model's spec",
        )
    dims = family.dims(config)
    if options.like is not None:
        return _like(options, dims)
    sizes = {"tp": 1, "pp": 1, "ep": 1, **options.sizes}
    sizes.setdefault("etp", sizes["tp"])
    divisible = options.vocab_divisible or 128
    unit = divisible * sizes["tp"]
    vocab = -(-dims["vocab"] // unit) * unit
    arguments = arguments_from(
        config,
        family,
        dialect=dialect.arguments,
        tp=sizes["tp"],
        pp=sizes["pp"],
        vpp=sizes.get("vpp"),
        ep=sizes["ep"],
        etp=sizes["etp"],
        divisible=divisible,
        padded_vocab=vocab,
        dtype=slots["embed"].dtype,
        implementation="transformer_engine" if dialect is CORE_TE else "local",
        experts_form="grouped" if dialect is CORE_TE else "sequential",
        mtp=len({s.split(".")[1] for s in slots if s.startswith("mtp.")}),
    )
    freq = arguments.get("moe_layer_freq")
    if isinstance(freq, list) and set(freq) == {1}:
        arguments["moe_layer_freq"] = 1  # Megatron's default; of a list it saves layers one by one
    simple = simple_arguments(source.arguments)
    args = {
        **simple,
        **arguments,
        "ckpt_format": "torch_dist",
        "use_mcore_models": True,
        "use_legacy_models": False,
    }
    args["params_dtype"] = Global("torch", slots["embed"].dtype)
    grid = Grid()
    model = Layout(grid, stage_layers(grid, dims["layers"]), dialect, "grouped", False, vocab)
    saved = as_saved(model, slots, dims, arguments)
    limit = parse_size(options.max_shard_size)
    return as_target(saved, namespace(args), source.iteration or 1, limit)[0], None


def _like(options: ConvertOptions, dims: Dims) -> tuple[Target, Checkpoint]:
    """Lay slots out under the keys, with the dtypes and arguments of an existing checkpoint."""
    path = place(options.like or "")
    model = open_checkpoint(path, ReadOptions())
    if model.format != FORMAT or model.table is None:
        raise UsageError(f"--like: {path} is no torch_dist checkpoint", hint="name one, or leave --like out")
    if model.strange:
        raise PlanError(
            f"--like: unknown: {some(list(model.strange))}",
            where=path,
            hint="name a checkpoint of a plain model",
        )
    dcp = open_dcp(model.data)
    names = weights_of(dcp)
    keys = {k: Spec(t.shape, t.dtype.name) for k, t in dcp.tensors.items() if k in names}
    if any(k != n for k, n in names.items()):
        raise PlanError(
            "--like: its names have a prefix", where=path, hint="name a checkpoint Megatron-LM wrote"
        )
    relation = unstacked(keys).compose(to_slots(model.tensors, model.table, dims, what="the model"))
    root = common_state(dcp)
    content = root.get("content_metadata")
    states = tuple(name for name in dcp.objects if name.partition("/")[0].endswith("_extra_state"))
    saved = Saved(
        pad_vocabulary(relation.invert()), states, harmless(content) if isinstance(content, dict) else {}
    )
    dtypes = {k: s.dtype for k, s in keys.items()}
    step = model.iteration if model.data.name.startswith("iter_") else None
    limit = parse_size(options.max_shard_size)
    target, wanted = as_target(saved, harmless(root.get("args")), step, limit, dtypes)
    stored = {name: Stored(dtype_named(s.dtype), s.shape, ()) for name, s in wanted.items()}
    return target, replace(model, stored=stored)
