"""Lay a model out as one ``torch_dist`` checkpoint, which loads in any parallel layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ckptconv.containers.dcp.dcp import open_dcp
from ckptconv.containers.torch.namespaces import harmless, namespace
from ckptconv.containers.torch.picklevm import Global
from ckptconv.dialects.core import CORE_LOCAL, CORE_TE
from ckptconv.dialects.saved import FORMAT, common_state, weights_of
from ckptconv.dialects.spread import Layout
from ckptconv.dialects.stacked import unstacked
from ckptconv.errors import UsageError
from ckptconv.facts.facts import read_facts
from ckptconv.facts.reverse import Form, arguments_from
from ckptconv.families.config import beside, facts_of
from ckptconv.parallel import Grid, stage_layers
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.request import Request
from ckptconv.plans.target import Laid, Target
from ckptconv.relations import Relation, Spec, renamed
from ckptconv.slots.translate import pad_vocabulary
from ckptconv.writers.megatron.arguments import guessed, mtp_layers, simple_arguments, unsaid
from ckptconv.writers.megatron.target import alone, as_found, as_model
from ckptconv.writers.torch_dist.options import TorchDistTarget
from ckptconv.writers.torch_dist.saved import Saved, as_saved, as_target

__all__ = ["lay_out"]

_DIALECTS = {d.name: d for d in (CORE_TE, CORE_LOCAL)}


def lay_out(request: Request, model: Laid, like: Checkpoint | None) -> Target:
    """Lay slots out as one checkpoint.

    Args:
        request: What is asked for.
        model: The model's slots; no head where it is tied.
        like: The checkpoint that is the model for it.

    Raises:
        UsageError: if flags do not go together.
        PlanError: if the model does not fit.
    """
    how: TorchDistTarget = request.writing
    assert model.config is not None
    assert model.family is not None
    if like is not None:
        return _like(how, model, like)
    dialect = _DIALECTS.get(how.dialect or CORE_TE.name)
    if dialect is None:
        raise UsageError(
            f"torch_dist does not have the names of {how.dialect}",
            hint=f"choose {CORE_TE.name} or {CORE_LOCAL.name}, for the model's spec",
        )
    dims = model.family.dims(model.config)
    unit = (how.vocab_divisible or 128) * (how.tp or 1)
    vocab = -(-dims["vocab"] // unit) * unit
    grid = Grid()
    layout = Layout(grid, stage_layers(grid, dims["layers"]), dialect, "grouped", False, vocab)
    gaps: list[str] = []
    arguments = _arguments(how, layout, model, gaps) if request.assets else _alone(how, dims["layers"])
    saved = as_saved(layout, model.tensors, dims, arguments)
    target = as_target(saved, namespace(arguments), model.source.iteration or 1, how.max_shard_size)
    notes = (*guessed(model.family), *unsaid(gaps)) if request.assets else ()
    return replace(target, zero_centered=model.family.zero_centered, notes=notes)


def _alone(how: TorchDistTarget, layers: int) -> dict[str, Any]:
    """Return the least arguments that weights alone are written with."""
    return {
        "num_layers": layers,
        "tensor_model_parallel_size": how.tp or 1,
        "pipeline_model_parallel_size": how.pp or 1,
        "expert_model_parallel_size": how.ep or 1,
        "expert_tensor_parallel_size": how.etp or how.tp or 1,
        "ckpt_format": "torch_dist",
    }


def _arguments(how: TorchDistTarget, layout: Layout, model: Laid, gaps: list[str]) -> dict[str, Any]:
    """Return what ``args`` is to say: the source's arguments, changed to the model's."""
    assert model.config is not None
    assert model.family is not None
    te = layout.dialect is CORE_TE
    dtype = model.tensors["embed"].dtype
    form = Form(
        layout.dialect.arguments,
        tp=how.tp or 1,
        pp=how.pp or 1,
        vpp=how.vpp,
        ep=how.ep or 1,
        etp=how.etp or how.tp or 1,
        divisible=how.vocab_divisible or 128,
        padded_vocab=layout.vocab,
        dtype=dtype,
        implementation="transformer_engine" if te else "local",
        experts_form="grouped" if te else "sequential",
        mtp=mtp_layers(model),
    )
    arguments = arguments_from(facts_of(model.config, model.family), form, gaps)
    arguments |= beside(model.config, read_facts(arguments), model.family, gaps)
    freq = arguments.get("moe_layer_freq")
    if isinstance(freq, list) and set(freq) == {1}:
        arguments["moe_layer_freq"] = 1  # Megatron's default; of a list it saves layers one by one
    own = {"ckpt_format": "torch_dist", "use_mcore_models": True, "use_legacy_models": False}
    said = simple_arguments(model.source.arguments)
    return {**said, **arguments, **own, "params_dtype": Global("torch", dtype)}


def _like(how: TorchDistTarget, model: Laid, like: Checkpoint) -> Target:
    """Lay slots out under the keys, with the dtypes and arguments of an existing checkpoint."""
    alone(how)
    if like.format != FORMAT:
        raise UsageError(
            f"--like: {like.data} is no torch_dist checkpoint", hint="name one, or leave --like out"
        )
    inner = as_model(model, like, ranks=False)
    dcp = open_dcp(like.data)
    names = weights_of(dcp)
    keys = {k: Spec(t.shape, t.dtype.name) for k, t in dcp.tensors.items() if k in names}
    named = {n: keys[k] for k, n in names.items()}
    relation = Relation.union(renamed(k, n, keys[k]) for k, n in names.items())
    relation = relation.compose(unstacked(named)).compose(inner)
    root = common_state(dcp)
    content = root.get("content_metadata")
    states = tuple(name for name in dcp.objects if name.partition("/")[0].endswith("_extra_state"))
    saved = Saved(
        pad_vocabulary(relation.invert()), states, harmless(content) if isinstance(content, dict) else {}
    )
    dtypes = {k: s.dtype for k, s in keys.items()}
    step = like.iteration if like.data.name.startswith("iter_") else None
    target = as_target(saved, harmless(root.get("args")), step, how.max_shard_size, dtypes)
    return as_found(target, model, like)
