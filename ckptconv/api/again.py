"""Plan a conversion again from what it wrote, to compare the two; each side is opened once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

from ckptconv.assets.find import CONFIG
from ckptconv.errors import CkptconvError, PlanError, UsageError
from ckptconv.planning.decode import form_of, quantised
from ckptconv.planning.model import Architecture, ConfigFound, find_architecture
from ckptconv.planning.plan import plan_checkpoint
from ckptconv.planning.request import find_writer, request_of
from ckptconv.plans.casting import recast
from ckptconv.plans.checkpoint import Checkpoint, settled
from ckptconv.plans.options import declared, made
from ckptconv.plans.plan import Plan
from ckptconv.plans.request import Request
from ckptconv.readers.reader import Reader, options_of
from ckptconv.readers.registry import find_reader, open_checkpoint
from ckptconv.records import dataclass
from ckptconv.relations import Relation
from ckptconv.verify.held import differences, planned, way_of
from ckptconv.writers.registry import WRITERS
from ckptconv.writers.writer import Writer

__all__ = ["Sides", "open_out", "open_sides", "plan_again"]

_DTYPES = ("float32", "bfloat16", "float16")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, slots=True)
class Sides:
    """Hold the two sides of a comparison, opened.

    Attributes:
        source: The checkpoint that was converted.
        there: What it was converted to; None where only the source is looked at.
        request: What was asked of the conversion.
    """

    source: Checkpoint
    there: Checkpoint | None
    request: Request


def open_sides(source: Path, out: Path | None, fields: Mapping[str, Any]) -> Sides:
    """Open a source and what it was converted to, each as the options given say.

    An option that the target's writer owns is about the output, as in the conversion; with ``source_`` before
    it, or if the output's reader does not understand it, it is about the source.

    Raises:
        CkptconvError: if one cannot be opened, or an option says nothing to either.
    """
    if out is None:
        request = request_of({**fields, "to": "hf", "assets": False})
        return Sides(open_checkpoint(source, request.reading), None, request)
    reader = find_reader(_entry(out))
    writer = _writer_of(reader)
    owned, known = declared(writer.options), options_of(reader)
    theirs = {n: v for n, v in fields.items() if n in owned and n in known and v is not None}
    hf = declared(find_writer("hf").options)
    idle = {n for n in owned if n not in hf}  # what decides how an output is laid out, not what it holds
    rest = {n: v for n, v in fields.items() if n not in theirs and n not in idle}
    lent = _lent(source, reader, rest)
    theirs |= {n: rest.pop(n) for n in lent}
    request = request_of({**rest, "to": "hf"})
    opened = open_checkpoint(source, request.reading, as_stored=reader.name == _kept(writer))
    return Sides(opened, open_out(out, theirs), request)


def _lent(source: Path, reader: Reader, fields: Mapping[str, Any]) -> list[str]:
    """Return what only the output's reader understands."""
    owned = options_of(find_reader(source))
    given = [n for n, v in fields.items() if v not in (None, False, ())]
    return [n for n in given if n in options_of(reader) and n not in owned]


def _kept(writer: Writer) -> str:
    """Return the reader whose checkpoints a writer may write as they are."""
    return writer.producer if writer.keeps(made(writer.options, {})) else ""


def _writer_of(reader: Reader) -> Writer:
    """Return the writer whose outputs a reader reads; that of Hugging Face's for others."""
    return next((w for w in WRITERS if w.producer == reader.name), find_writer("hf"))


def open_out(out: Path, given: Mapping[str, Any]) -> Checkpoint:
    """Open what was written."""
    return open_checkpoint(_entry(out), given, as_stored=True)


def _entry(path: Path) -> Path:
    """Return the file of an adapter where a folder holds nothing else."""
    models = ("model*.safetensors", "pytorch_model*.bin")
    if path.is_dir() and not any(any(path.glob(m)) for m in models):
        return next((path / n for n in _ADAPTERS if (path / n).is_file()), path)
    return path


def plan_again(sides: Sides) -> tuple[Plan, Relation, bool]:
    """Plan the conversion to what an output is.

    Returns:
        The plan, how the output's stored tensors relate to its tensors, and whether its assets are those that
        stand beside the weights.

    Raises:
        PlanError: if the source cannot be planned, or the output's tensors not be brought to its names.
    """
    there, source = sides.there, sides.source
    assert there is not None
    asked = sides.request
    coded = quantised(there)
    values = coded is None or coded.decoded  # values were written, asked for or not
    ours = _to("hf", asked, dequantize=values)
    if there.data.name in _ADAPTERS:
        ours = replace(ours, lora="adapter")
    if _keeps_names(source, there):
        plan = plan_checkpoint(source, _to("mindformers", ours))
        return _typed(plan, there.relation, ours), there.relation, False
    source = settled(source)
    if there.table is None and there.settle is None:
        how = replace(
            asked.writing,
            dequantize=values or asked.writing.dequantize,
            quantize=asked.writing.quantize or form_of(source, there),
        )
        plan, complete = _as_model(source, replace(ours, writing=how, assets=asked.assets), there)
        return plan, there.relation, complete
    model = find_architecture(source, ours, needed=False)
    ours = _without_buffers(source, ours, model)
    back = _to_hf(there, ours, model.config)
    found = None
    if not back.terms:
        found = _typed(plan_checkpoint(source, ours), back.relation, ours)
        if not found.terms and planned(found).keys() == back.relation.right.keys():
            guessed = [("guess", f"the output: {text}") for level, text in back.notes if level == "guess"]
            return replace(found, notes=(*found.notes, *guessed)), back.relation, False
    # Something is added on the way to Hugging Face's names, or a tied head is stored as one of its own: the
    # output is then compared with what would be written in its layout.
    try:
        return *_as_laid_out(source, ours, there, model.config), False
    except (PlanError, UsageError) as e:
        if found is not None:
            return found, back.relation, False
        raise PlanError(
            f"something is added to {next(iter(back.terms))} on the way back, so the two cannot be compared",
            where=there.data,
            hint="convert it to Hugging Face's format, and verify that",
        ) from e


def _to(target: str, request: Request, **writing: Any) -> Request:
    """Return the request for another target, with nothing of the old one's options."""
    how: Any = made(find_writer(target).options, writing)
    return replace(request, to=target, writing=how, assets=False)


def _keeps_names(source: Checkpoint, there: Checkpoint) -> bool:
    """Whether two checkpoints of MindSpore have the same tensors in the same shapes."""
    if source.settle is None or there.settle is None:
        return False
    one, two = ({n: s.shape for n, s in c.tensors.items()} for c in (source, there))
    return bool(two) and two.items() <= one.items()


def _as_model(source: Checkpoint, request: Request, there: Checkpoint) -> tuple[Plan, bool]:
    """Plan the conversion to Hugging Face's names, with what stands beside the weights if it is compared.

    Returns:
        The plan, with the element type the output's tensors have where the request names none; and whether
        its assets are complete: they are not where none are there, or where they cannot be planned.
    """
    folder = there.producer == "huggingface" and there.root.is_dir() and (there.root / CONFIG).is_file()
    if not (folder and request.assets and there.data.name not in _ADAPTERS):
        return plan_checkpoint(source, replace(request, assets=False), found=there.tensors), False
    try:
        return plan_checkpoint(source, request, found=there.tensors), True
    except CkptconvError as e:
        plan = plan_checkpoint(source, replace(request, assets=False), found=there.tensors)
        text = f"{CONFIG} and what stands beside the weights were not compared: {e.message}"
        return replace(plan, notes=(*plan.notes, ("warning", text))), False


def _typed(plan: Plan, way: Relation, request: Request) -> Plan:
    """Give a plan the types that the output's tensors have, each its own, where the request says none."""
    if request.dtype != "keep":
        return plan
    wrong = [m.tensor for m in differences(planned(plan), way.right) if m.kind == "dtype"]
    return recast(plan, {n: d for n in wrong if (d := way.right[n].dtype) in _DTYPES})


def _as_laid_out(
    source: Checkpoint, request: Request, there: Checkpoint, config: ConfigFound | None
) -> tuple[Plan, Relation]:
    """Plan what an output of ranks would be, with its own layout, names and types."""
    to = "torch_dist" if "dist" in there.format else "megatron"
    asked = _to(to, request, like=there.data)
    made_like = plan_checkpoint(source, asked, there, config)
    filled = {p.right.tensor for p in made_like.relation.pairs}
    files = []
    for file in made_like.files:
        # What no tensor of the source goes to is no weight: states of Transformer Engine's modules.
        kept = tuple(t for t in file.layout.tensors if t.name in filled or t.name in there.stored)
        files.append(replace(file, layout=replace(file.layout, tensors=kept)))
    plan = replace(made_like, files=tuple(files))
    return plan, way_of(plan, there)


def _without_buffers(source: Checkpoint, request: Request, model: Architecture) -> Request:
    """Leave out what a model makes itself, which only files of Hugging Face may hold."""
    if source.table is not None or model.family is None or model.config is None:
        return request
    unknown = model.family.table(model.config.values).named(source.tensors)[1]
    buffers = [n for n in unknown if model.family.is_ignored(n)]
    return replace(request, drop=(*request.drop, *map(escape, buffers)))


def _to_hf(there: Checkpoint, request: Request, config: ConfigFound | None) -> Plan:
    """Relate an output under a framework's own names to Hugging Face's, as if it were converted itself."""
    plain = Request(family=request.family, vocab_size=request.vocab_size, config=request.config)
    try:
        return plan_checkpoint(there, _to("hf", plain), None, config)
    except PlanError as e:
        raise PlanError(
            f"the output cannot be brought to Hugging Face's names: {e.message}", where=e.where, hint=e.hint
        ) from e
