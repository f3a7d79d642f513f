"""Plan a conversion: settle, adapt, name, and let the writer lay it out; no branch by target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Literal, cast, get_args

from ckptconv.collector import without_collector
from ckptconv.dtypes import DType
from ckptconv.errors import PlanError
from ckptconv.families import Family
from ckptconv.planning.adapters.carry import ones
from ckptconv.planning.adapters.lora import term_steps
from ckptconv.planning.adapters.peft import prepare
from ckptconv.planning.decode import (
    as_values,
    check_whole,
    decode_steps,
    decoded,
    is_opaque,
    of_one_type,
)
from ckptconv.planning.decode.encode import form_asked, in_blocks, quantization_config
from ckptconv.planning.folder import compare, compared, gather_assets
from ckptconv.planning.foreign import judged, refuse_computed_with
from ckptconv.planning.lent import lent_adapter
from ckptconv.planning.model import Architecture, ConfigFound, find_architecture
from ckptconv.planning.names import Named, name_tensors
from ckptconv.planning.request import find_writer
from ckptconv.plans.assemble import plan_of
from ckptconv.plans.casting import cast_chains, cast_steps
from ckptconv.plans.checkpoint import Checkpoint, Note, settled
from ckptconv.plans.plan import AssetFile, Plan, Step
from ckptconv.plans.replicas import with_replicas
from ckptconv.plans.request import Request
from ckptconv.plans.target import Laid, Target
from ckptconv.readers.registry import open_checkpoint
from ckptconv.records import dataclass
from ckptconv.relations import Relation, Spec
from ckptconv.slots import template
from ckptconv.slots.translate import (
    as_stored,
    follow_through,
    retyped,
    to_slots,
    with_tied_head,
    without,
)
from ckptconv.writers.writer import Writer

__all__ = ["open_like", "open_source", "plan_checkpoint"]

DTypeName = Literal["float32", "bfloat16", "float16"]

_BUFFER = "a buffer the model makes itself"


def open_source(request: Request, path: Path) -> Checkpoint:
    """Open what a request converts."""
    keeps = find_writer(request.to).keeps(request.writing)
    return open_checkpoint(path, request.reading, as_stored=keeps)


def open_like(request: Request) -> Checkpoint | None:
    """Open the checkpoint a request names as the model for its target; None if it names none."""
    like = getattr(request.writing, "like", None)
    return None if like is None else open_checkpoint(like, as_stored=True)


@without_collector()
def plan_checkpoint(
    checkpoint: Checkpoint,
    request: Request,
    like: Checkpoint | None = None,
    config: ConfigFound | None = None,
    found: Mapping[str, Spec] | None = None,
) -> Plan:
    """Plan what a request asks of an opened checkpoint, from metadata alone.

    Args:
        checkpoint: The source, as it was opened.
        request: What is to be written.
        like: What the request's ``like`` names, opened.
        config: The config of another checkpoint of the same model, to be taken.
        found: The tensors of what such a request wrote: the element type most of them were cast to is taken,
            where the request names none.

    Raises:
        PlanError: if a tensor is unmapped, uncovered, doubled or of another shape than the config asks for.
        UsageError: if what is asked for does not go together.
    """
    writer = find_writer(request.to)
    if writer.keeps(request.writing) and checkpoint.producer == writer.producer:
        made = _as_it_is(checkpoint, request)
    elif writer.takes == "slots":
        made = _in_slots(decoded(settled(checkpoint), request), request, config)
    else:
        made = _in_names(decoded(settled(checkpoint), request), request, writer, config, found)
    target = writer.lay_out(request, made.laid, like)
    return with_replicas(_finished(made, target, request, writer), request.replicas)


@dataclass(frozen=True, slots=True)
class _Made:
    """Hold a model under the names its writer takes.

    Attributes:
        laid: The model, for the writer.
        relation: Stored tensors to the model's.
        named: The same under Hugging Face's names: aliases, ties, casts, sums.
        model: Its architecture.
        via: Dtypes its tensors are rounded to on the way.
        steps: What is not a plain copy.
        notes: What a user should know.
    """

    laid: Laid
    relation: Relation
    named: Named
    model: Architecture
    via: Mapping[str, DType] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    notes: Sequence[Note] = ()


def _as_it_is(checkpoint: Checkpoint, request: Request) -> _Made:
    """Keep the names and the packing a checkpoint has, its training states included."""
    model = Architecture(None, None)
    named = name_tensors(replace(checkpoint, table=None), request, model)
    laid = Laid(named.relation.right, checkpoint, keeps=True)
    return _Made(laid, named.relation, named, model, named.via, named.steps, checkpoint.notes)


def _in_names(
    checkpoint: Checkpoint,
    request: Request,
    writer: Writer,
    lent: ConfigFound | None,
    found: Mapping[str, Spec] | None,
) -> _Made:
    """Bring a checkpoint to the names and shapes ``save_pretrained`` writes."""
    made = prepare(checkpoint, request, lent_adapter(checkpoint, request))
    checkpoint = made.checkpoint
    needed = writer.folder and request.assets and made.config is None
    model = find_architecture(checkpoint, request, needed=needed, lent=lent)
    held = found or ()
    named = name_tensors(checkpoint, request, model, made.terms, held)
    if found is not None and request.dtype == "keep" and (to := _cast_to(named.written, found)) is not None:
        named = name_tensors(checkpoint, replace(request, dtype=to), model, made.terms, held)
    if not named.written:
        raise PlanError(
            "no tensor is left to be written",
            where=checkpoint.data,
            hint="drop less with --drop, or name the files that hold the weights",
        )
    if checkpoint.table is not None:
        named.relation.check()
    check_whole(checkpoint, named.relation)
    adapter = made.config or named.adapter
    notes = [*checkpoint.notes, *model.notes, *named.notes]
    config, family = model.config, model.family
    if adapter is not None:
        model = replace(model, config=None)
    elif is_opaque(checkpoint):
        notes.append(Note("info", "its layout is not known: names and shapes pass unchecked"))
    elif config is not None:
        values = as_values(checkpoint, named)
        # DeepSpeed can leave frozen parameters out of a save; what is dropped is known to be missing.
        saved = "not in the checkpoint (saved with exclude_frozen_parameters?)"
        partial = saved if checkpoint.producer == "deepspeed" else ""
        if request.drop or request.keep:
            partial = "left out by --drop or --keep"
        part = bool(request.drop or request.keep) and not request.assets
        findings = None
        if family is not None and family.entries:
            findings = compared(family, config.values, values, part=part)
        missing = None if findings is None else findings.missing
        notes += judged(checkpoint, model, values, missing, partial=partial, alone=not request.assets)
        if family is not None and findings is not None:
            notes += compare(family, config.values, values, findings)
            unknown = findings.unexpected
            refuse_computed_with(checkpoint, family, config.values, unknown, alone=not request.assets)
    form = form_asked(request, alone=adapter is not None)
    named = in_blocks(named, form)
    if form is not None and model.config is not None:
        says = quantization_config(form, named, model.config.values.get("model_type"))
        said = {**model.config.values, "quantization_config": says}
        model = replace(model, config=replace(model.config, values=said))
    told = None if model.config is None else model.config.values
    laid = Laid(named.written, checkpoint, told, family, named.tied, adapter)
    steps = [*named.steps, *model.steps]
    return _Made(laid, named.relation, named, model, named.via, steps, notes)


def _cast_to(planned: Mapping[str, Spec], found: Mapping[str, Spec]) -> DTypeName | None:
    """Return the element type that most tensors have by a cast; None if most are as they were."""
    both = [(found[n].dtype, spec.dtype) for n, spec in planned.items() if n in found]
    usual = Counter(to for to, _ in both if to in get_args(DTypeName)).most_common(1)
    if not usual or all(of == to for to, of in both if to == usual[0][0]):
        return None
    return cast("DTypeName", usual[0][0])


def _in_slots(checkpoint: Checkpoint, request: Request, lent: ConfigFound | None) -> _Made:
    """Bring a checkpoint to the slots of its model, by way of Hugging Face's names."""
    checkpoint = prepare(checkpoint, request).checkpoint
    model = find_architecture(checkpoint, request, needed=True, lent=lent)
    config, family = _known(model)
    named = name_tensors(checkpoint, request, replace(model, zero_centered=None))
    table = family.table(config.values)
    buffers = [n for n in table.named(named.relation.right)[1] if family.is_ignored(n)]
    relation = without(named.relation, buffers, _BUFFER)
    inner = to_slots(relation.right, table, family.dims(config.values), what="config.json")
    relation = relation.compose(inner)
    steps = [s for s in named.steps if s.kind != "cast"]
    steps += [Step("drop", n, _BUFFER) for n in buffers]
    notes = [*checkpoint.notes, *model.notes, *named.notes]
    notes += compare(family, config.values, named, compared(family, config.values, named))
    laid = Laid(relation.right, checkpoint, config.values, family, named.tied)
    return _Made(laid, relation, named, model, follow_through(named.via, inner), steps, notes)


def _known(model: Architecture) -> tuple[ConfigFound, Family]:
    """Return config and family of a model whose slots are needed."""
    config, family = model.config, model.family
    assert config is not None
    if family is None or not family.entries:
        raise PlanError(
            f"there is no table for model_type {config.values.get('model_type')!r}",
            where=config.origin,
            hint="give --family with a name or a file",
        )
    return config, family


def _finished(made: _Made, target: Target, request: Request, writer: Writer) -> Plan:
    """Join what was read with what is written."""
    source, model = made.laid.source, made.model
    relation, casts, terms = made.relation, made.named.casts, made.named.terms
    steps = list(made.steps)
    if target.relation is not None:
        relation = with_tied_head(relation, target.relation)
        outer = retyped(target.relation, relation.right)
        relation = relation.compose(outer)
        if request.dtype == "keep":
            relation = as_stored(relation, target.dtypes)
        source, relation = of_one_type(source, relation)
        casts = cast_chains(source, relation, follow_through(made.via, outer))
        if not made.laid.keeps:
            terms = ones(outer, _centering(made, target))
            steps += cast_steps(casts) + term_steps(terms, relation.right)
        relation.check()
    written = made.laid.tensors if target.relation is None else relation.right
    assets, notes = list(target.assets), [*made.notes, *target.notes]
    steps += _left_out(source)
    if writer.folder and request.assets and model.config is not None:
        more, asset_steps, asset_notes = _gathered(made, request)
        assets, steps, notes = assets + more, steps + asset_steps, notes + asset_notes
    plan = plan_of(source, relation, casts, target.files(written), terms)
    notes_said = tuple((n.level, n.text) for n in notes)
    return replace(plan, assets=tuple(assets), steps=tuple(steps), notes=notes_said)


def _centering(made: _Made, target: Target) -> Callable[[str], int]:
    """Return what a norm lacks of its 1 in the source and not in the target, by its slot."""
    family = made.laid.family
    if family is None:
        return lambda norm: 0
    table = made.laid.source.table
    source = made.model.zero_centered if table is not None else None
    plain = table.as_model if table is not None else frozenset()

    def lacks(side: bool | None, plain: frozenset[str], norm: str) -> bool:
        return family.is_zero_centered(norm) if side is None or template(norm) in plain else side

    return lambda norm: lacks(source, plain, norm) - lacks(target.zero_centered, target.as_model, norm)


def _gathered(made: _Made, request: Request) -> tuple[list[AssetFile], list[Step], list[Note]]:
    model = made.model
    assert model.config is not None
    given = getattr(request.writing, "tokenizer", None)
    tokenizer = given or model.tokenizer
    copy_code = bool(getattr(request.writing, "copy_code", False))
    assets, steps, notes = gather_assets(
        made.laid.source, made.named, model.family, model.config, tokenizer, copy_code
    )
    if tokenizer is not None and not given:
        text = f"the tokenizer is taken from {tokenizer}, which the training arguments name"
        notes = [*notes, Note("info", f"{text}; --tokenizer takes another")]
    return assets, steps, notes


def _left_out(checkpoint: Checkpoint) -> list[Step]:
    """Say which weights are decoded, and what the files hold beside them: padding, optimizer states."""
    padding = Counter[str]()
    for drop in checkpoint.relation.left_only:
        padding[drop.reason] += drop.box.numel
    steps = decode_steps(checkpoint)
    steps += [Step("left out", f"{count:,} elements", reason) for reason, count in padding.items()]
    found = checkpoint.left_out.items()
    return steps + [
        Step("left out", f"{count:,} bytes", f"{kind}: not weights") for kind, count in found if count
    ]
