"""Plan a conversion again from what it wrote, to compare the two."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from ckptconv.api.convert import plan
from ckptconv.assets.find import CONFIG
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import CkptconvError, PlanError, UsageError
from ckptconv.planning.model import find_architecture
from ckptconv.planning.settle import reading, understood
from ckptconv.plans.checkpoint import Checkpoint, ReadOptions
from ckptconv.plans.plan import AssetFile, Plan
from ckptconv.plans.request import ConvertOptions
from ckptconv.readers.registry import open_checkpoint
from ckptconv.relations import Relation
from ckptconv.verify.held import differences, planned, way_of

__all__ = ["assets_again", "open_out", "open_source", "plan_again"]

_DTYPES = ("float32", "bfloat16", "float16")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_MINDSPORE = "mindspore"


def open_out(path: Path, options: ConvertOptions) -> Checkpoint:
    """Open what was written; of MindSpore's ranks ``options.strategy`` says how they were cut."""
    if (
        path.is_dir()
        and not any(path.glob("model*.safetensors"))
        and not any(path.glob("pytorch_model*.bin"))
    ):
        path = next((path / n for n in _ADAPTERS if (path / n).is_file()), path)
    strategy = options.strategy if options.strategy is not None and _is_mindspore(path) else None
    return open_checkpoint(path, ReadOptions(strategy=strategy, states=_is_mindspore(path)))


def _is_mindspore(path: Path) -> bool:
    from ckptconv.readers.mindspore import READER

    return READER.recognise(path)


def open_source(path: Path, options: ConvertOptions) -> Checkpoint:
    """Open a source as its conversion does."""
    how = ReadOptions(
        options.weights,
        options.tag,
        iteration=options.iteration,
        sizes=options.source_sizes,
        **reading(options),
    )
    return understood(open_checkpoint(path, how), options)


def plan_again(source: Path, there: Checkpoint, options: ConvertOptions) -> tuple[Plan, Relation]:
    """Plan the conversion to what an output is.

    Args:
        source: The checkpoint.
        there: What it was converted to.
        options: The options of the conversion; those of the target are found out from ``there``. What may
            speak of either side, such as ``strategy``, is the output's if that is of MindSpore.

    Returns:
        The plan, and how the output's stored tensors relate to its tensors.

    Raises:
        PlanError: if the source cannot be planned, or the output's tensors not be brought to its names.
    """
    ours, theirs = _sides(source, there, options)
    if there.data.name in _ADAPTERS:
        ours = replace(ours, lora="adapter")
    if ours.to == "mindformers":
        return _as_found(source, ours, there, there.relation, alike=False)
    if there.table is None and there.producer != _MINDSPORE:
        return _as_found(source, ours, there, there.relation, alike=True)
    ours = _without_buffers(source, ours)
    back = _to_hf(source, ours, there, theirs)
    found = None if back.terms else _as_found(source, ours, there, back.relation, alike=False)
    if found is not None and not found[0].terms and planned(found[0]).keys() == found[1].right.keys():
        guessed = [("guess", f"the output: {text}") for level, text in back.notes if level == "guess"]
        return replace(found[0], notes=(*found[0].notes, *guessed)), found[1]
    # Something is added on the way to Hugging Face's names, or a tied head is stored as one of its own: the
    # output is then compared with what would be written in its layout.
    try:
        return _as_laid_out(source, ours, there)
    except (PlanError, UsageError) as e:
        if found is not None:
            return found
        raise PlanError(
            f"something is added to {next(iter(back.terms))} on the way back, so the two cannot be compared",
            where=there.data,
            hint="convert it to Hugging Face's format, and verify that",
        ) from e


def assets_again(
    source: Path, there: Checkpoint, options: ConvertOptions
) -> tuple[tuple[AssetFile, ...] | None, tuple[tuple[str, str], ...]]:
    """Plan again what stands beside the weights of an output that is a Hugging Face model.

    Returns:
        The files, None where the output has none to compare or none can be planned; and notes that say why.
    """
    if there.producer != "huggingface" or not there.root.is_dir() or not options.assets:
        return None, ()
    if not (there.root / CONFIG).is_file():
        return None, ()
    try:
        return plan(source, replace(options, to="hf", assets=True, format=None)).assets, ()
    except CkptconvError as e:
        text = f"{CONFIG} and what stands beside the weights were not compared: {e.message}"
        return None, (("warning", text),)


def _as_laid_out(source: Path, options: ConvertOptions, there: Checkpoint) -> tuple[Plan, Relation]:
    """Plan what an output of ranks would be, with its own layout, names and types."""
    to = "torch_dist" if "dist" in there.format else "megatron"
    with _config(source, options) as config:
        made = plan(source, replace(options, to=to, like=str(there.data), config=config))
    filled = {p.right.tensor for p in made.relation.pairs}
    files = []
    for file in made.files:
        # What no tensor of the source goes to is no weight: states of Transformer Engine's modules.
        kept = tuple(t for t in file.layout.tensors if t.name in filled or t.name in there.stored)
        files.append(replace(file, layout=replace(file.layout, tensors=kept)))
    made = replace(made, files=tuple(files))
    return made, way_of(made, there)


def _sides(source: Path, there: Checkpoint, options: ConvertOptions) -> tuple[ConvertOptions, ConvertOptions]:
    """Return what of the options is about the source, and about the output as a source of its own."""
    plain = ConvertOptions(assets=False, family=options.family, vocab_size=options.vocab_size)
    ours = replace(options, to="hf", assets=False, sizes={}, like=None, format=None, qkv_concat=False)
    ours = replace(ours, dialect=None, experts=None, mla=None)
    if there.producer != _MINDSPORE:
        return ours, plain
    from_mindspore = _is_mindspore(source)
    ours = replace(ours, strategy=None, qkv_layout=None, mlp_layout=None)
    if from_mindspore and _keeps_names(source, ours, there):
        return replace(ours, to="mindformers", format="safetensors"), plain
    theirs = replace(
        plain,
        strategy=options.strategy,
        qkv_layout=options.qkv_layout,
        mlp_layout=options.mlp_layout,
        yaml=None if from_mindspore else options.yaml,
    )
    return (ours if from_mindspore else replace(ours, yaml=None)), theirs


def _keeps_names(source: Path, options: ConvertOptions, there: Checkpoint) -> bool:
    """Whether two checkpoints of MindSpore have the same tensors in the same shapes."""
    opened = open_checkpoint(source, ReadOptions(strategy=options.source_strategy, states=True))
    one, two = ({n: s.shape for n, s in c.tensors.items()} for c in (opened, there))
    return bool(two) and two.items() <= one.items()


def _as_found(
    source: Path, options: ConvertOptions, there: Checkpoint, way: Relation, *, alike: bool
) -> tuple[Plan, Relation]:
    """Plan with the types that the output's tensors have.

    Args:
        source: The checkpoint.
        options: Whose ``dtype`` holds if it says one.
        there: The output.
        way: Its stored tensors to tensors.
        alike: Whether all of them were cast to one type, as those of a model are.
    """
    made = plan(source, options)
    if options.dtype != "keep":
        return made, way
    wrong = {m.tensor for m in differences(planned(made), way.right) if m.kind == "dtype"}
    found = Counter(dtype for n in wrong if (dtype := way.right[n].dtype) in _DTYPES)
    if alike:
        found = Counter(dict(found.most_common(1)))
    cast = {d: plan(source, replace(options, dtype=d)) for d in found}  # type: ignore[arg-type]
    if len(cast) == 1:
        (whole,) = cast.values()
        if alike or not differences(planned(whole), way.right):
            return whole, way
    return _with_casts(made, {n: cast[d] for n in wrong if (d := way.right[n].dtype) in cast}), way


def _with_casts(made: Plan, others: Mapping[str, Plan]) -> Plan:
    """Return a plan with the types that other plans give some tensors: ranks may hold several."""
    if not others:
        return made
    right = {n: others[n].relation.right[n] if n in others else s for n, s in made.relation.right.items()}
    casts = {n: c for n, c in made.casts.items() if n not in others}
    casts |= {n: p.casts[n] for n, p in others.items() if n in p.casts}
    files = []
    for file in made.files:
        tensors = tuple(replace(t, dtype=dtype_named(right[t.name].dtype)) for t in file.layout.tensors)
        files.append(replace(file, layout=replace(file.layout, tensors=tensors)))
    return replace(made, relation=replace(made.relation, right=right), casts=casts, files=tuple(files))


def _without_buffers(source: Path, options: ConvertOptions) -> ConvertOptions:
    """Leave out what a model makes itself, which only files of Hugging Face may hold."""
    opened = open_source(source, options)
    known = find_architecture(opened, options, needed=False)
    if opened.table is not None or known.family is None or known.config is None:
        return options
    unknown = known.family.table(known.config.values).named(opened.tensors)[1]
    buffers = [n for n in unknown if known.family.is_ignored(n)]
    return replace(options, drop=(*options.drop, *map(escape, buffers)))


def _to_hf(source: Path, ours: ConvertOptions, there: Checkpoint, theirs: ConvertOptions) -> Plan:
    """Relate an output under a framework's own names to Hugging Face's, as if it were converted itself."""
    try:
        with _config(source, ours) as config:
            return plan(there.data, replace(theirs, config=config))
    except PlanError as e:
        raise PlanError(
            f"the output cannot be brought to Hugging Face's names: {e.message}", where=e.where, hint=e.hint
        ) from e


@contextmanager
def _config(source: Path, options: ConvertOptions) -> Iterator[str | None]:
    """Hand out where the source's config.json is, as long as it is needed; None if none is known."""
    if options.config is not None:
        yield options.config
        return
    known = find_architecture(open_source(source, options), options, needed=False).config
    if known is None or known.folder is not None:
        yield None if known is None else str(known.folder)
        return
    with TemporaryDirectory(prefix="ckptconv-") as folder:
        Path(folder, CONFIG).write_text(json.dumps(known.values), encoding="utf-8")
        yield folder
