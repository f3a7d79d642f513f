"""Say what the ``args`` of a Megatron checkpoint are to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ckptconv.containers.torch.picklevm import Global
from ckptconv.dialects import Dialect
from ckptconv.dialects.spread import Layout
from ckptconv.facts.facts import read_facts
from ckptconv.facts.reverse import Form, arguments_from
from ckptconv.families import Family
from ckptconv.families.config import beside, facts_of
from ckptconv.families.detect import is_zero_centered
from ckptconv.parallel import chunk_order
from ckptconv.plans.checkpoint import Note
from ckptconv.plans.target import Laid
from ckptconv.writers.megatron.options import MegatronTarget

__all__ = ["arguments_of", "divisible", "guessed", "layout_alone", "mtp_layers", "simple_arguments", "unsaid"]

# Arguments that say norms are stored without their 1; norms stay as they are between checkpoints of ranks.
_ZERO_CENTERED = ("apply_layernorm_1p", "layernorm_zero_centered_gamma", "add_rmsnorm_offset")

# What `Form` calls the forms of experts.
_FORMS: Mapping[str, Literal["sequential", "grouped", "legacy_grouped"]] = {
    "sequential": "sequential",
    "grouped": "grouped",
    "legacy-grouped": "legacy_grouped",
}

# MindSpeed's words for a layout, which Megatron's arguments would not overwrite.
_LAYOUT = ("noop_layers", "num_layer_list", "schedules_method", "mla_mm_split", "moe_tp_extend_ep")


def layout_alone(layout: Layout, how: MegatronTarget, layers: int) -> dict[str, Any]:
    """Return the arguments that tell how weights alone are laid out."""
    grid = layout.grid
    return {
        "num_layers": layers + len(how.noop_layers),
        "tensor_model_parallel_size": grid.tp,
        "pipeline_model_parallel_size": grid.pp,
        "virtual_pipeline_model_parallel_size": grid.vpp if grid.vpp > 1 else None,
        "expert_model_parallel_size": grid.ep,
        "expert_tensor_parallel_size": grid.etp,
        "noop_layers": ",".join(map(str, how.noop_layers)) or None,
        "schedules_method": how.schedule,
        "moe_tp_extend_ep": how.extend_ep,
    }


def arguments_of(layout: Layout, how: MegatronTarget, model: Laid, gaps: list[str]) -> dict[str, Any]:
    """Return what ``args`` is to say; ``gaps`` takes what it cannot."""
    assert model.config is not None
    assert model.family is not None
    grid, dialect = layout.grid, layout.dialect
    counts = how.layers_per_stage or None
    form = Form(
        dialect.arguments,
        tp=grid.tp,
        pp=grid.pp,
        vpp=grid.vpp if grid.vpp > 1 else None,
        ep=grid.ep,
        etp=grid.etp,
        divisible=how.vocab_divisible or divisible(dialect),
        padded_vocab=layout.vocab,
        dtype=model.tensors["embed"].dtype,
        implementation="transformer_engine" if dialect.name.endswith("te") else "local",
        experts_form=_FORMS[layout.experts],
        mtp=mtp_layers(model),
        layers_per_stage=counts if dialect.arguments == "mindspeed" else None,
        noop_layers=how.noop_layers,
        schedule=how.schedule,
        mla_mm_split=how.mla == "split",
        moe_tp_extend_ep=how.extend_ep,
    )
    arguments = arguments_from(facts_of(model.config, model.family), form, gaps)
    if model.family.beyond is not None:
        gaps += [f"they do not say {what}" for what in model.family.beyond(model.family.own(model.config))]
    arguments |= beside(model.config, read_facts(arguments), model.family, gaps)
    arguments["use_legacy_models"] = dialect.name == "legacy"
    arguments["use_mcore_models"] = dialect.name != "legacy"
    if counts is not None and dialect.arguments == "megatron":
        arguments["pipeline_model_parallel_layout"] = _pipeline(
            [len(layout.stages[chunk]) for chunk in chunk_order(grid)], arguments["mtp_num_layers"] or 0
        )
    source = model.source
    if source.table is not None and is_zero_centered(source.arguments, model.family):
        arguments |= {k: True for k in _ZERO_CENTERED if source.arguments.get(k) is True}
    args = {**simple_arguments(source.arguments), **arguments}
    if args.get("params_dtype") is not None:
        args["params_dtype"] = Global("torch", arguments["params_dtype"])
    return args


def guessed(family: Family) -> tuple[Note, ...]:
    """Say that a family does not tell what its config.json means, where it does not."""
    if family.template is not None:
        return ()
    text = (
        f"the table of {family.name} does not say what its config.json means: the arguments are taken from "
        "the usual keys, so compare them with the model's"
    )
    return (Note("guess", text),)


def unsaid(gaps: Sequence[str]) -> tuple[Note, ...]:
    """Say what of a config.json the arguments that are written leave out."""
    if not gaps:
        return ()
    return (Note("warning", f"the arguments that are written are not complete: {'; '.join(gaps)}"),)


def mtp_layers(model: Laid) -> int:
    """Return how many layers for multi-token prediction there are."""
    return len({s.split(".")[1] for s in model.tensors if s.startswith("mtp.")})


def divisible(dialect: Dialect) -> int:
    """Return what the rows of a rank's vocabulary are a multiple of by default."""
    return 128 if dialect.arguments == "megatron" else 1


def _pipeline(counts: Sequence[int], mtp: int) -> str:
    """Return the layers of each chunk as Megatron writes a layout: ``Et*3|t*5mL``."""
    chunks = [f"t*{n}" if n else "" for n in counts]
    return "E" + "|".join(chunks) + "m" * mtp + "L"


def simple_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a source's arguments a target takes over: simple values that speak of no layout."""
    simple = (bool, int, float, str, list, type(None))
    return {k: v for k, v in arguments.items() if isinstance(v, simple) and k not in _LAYOUT}
