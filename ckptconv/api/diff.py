"""Bring two checkpoints to one set of names, and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from time import perf_counter

from ckptconv.api.padding import true_rows, without_padding
from ckptconv.api.progress import following
from ckptconv.engine.events import Listener
from ckptconv.engine.options import DEFAULT_MEMORY, Options
from ckptconv.errors import PlanError, UsageError
from ckptconv.places.places import PathArg, place
from ckptconv.planning.adapters.peft import prepare
from ckptconv.planning.decode import quantised, with_values
from ckptconv.planning.model import find_architecture
from ckptconv.planning.names import name_tensors
from ckptconv.planning.request import about_source, request_of
from ckptconv.plans.assemble import plan_of
from ckptconv.plans.casting import cast_chains
from ckptconv.plans.checkpoint import Checkpoint, Weights, settled
from ckptconv.plans.options import made
from ckptconv.plans.plan import Plan
from ckptconv.plans.request import Request
from ckptconv.readers.reader import options_of
from ckptconv.readers.registry import READERS, find_reader, open_checkpoint
from ckptconv.readers.saves import has_steps
from ckptconv.records import dataclass
from ckptconv.relations.terms import operands
from ckptconv.slots import Entry
from ckptconv.verify.diff import compare
from ckptconv.verify.outcome import Diff, Same

__all__ = ["View", "as_opened", "diff", "steps_of", "under_hf_names"]


@dataclass(frozen=True, slots=True)
class View:
    """See a checkpoint's tensors under one set of names.

    Attributes:
        plan: Relates stored tensors to these; it writes no file.
        aliases: Names that share another tensor's data.
        config: The folder its config.json is from; None if it has none or it was built.
        buffers: Names of what the model makes itself, and saves or not.
        notes: ``(level, text)`` for people.
    """

    plan: Plan
    aliases: Mapping[str, str]
    config: Path | None = None
    buffers: frozenset[str] = frozenset()
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> list[str]:
        """The tensors' names, without those that only take part in a sum."""
        parts = operands(self.plan.terms)
        return [n for n in self.plan.relation.right if n not in parts]


def as_opened(checkpoint: Checkpoint) -> View:
    """See a checkpoint under its producer's names."""
    relation = checkpoint.relation
    casts = cast_chains(checkpoint, relation, checkpoint.via)
    return View(plan_of(checkpoint, relation, casts), checkpoint.aliases, notes=_notes(checkpoint))


def under_hf_names(checkpoint: Checkpoint, options: Request) -> View:
    """See a checkpoint under the names ``save_pretrained`` writes.

    Raises:
        PlanError: if its architecture is not known, or contradicts the tensors.
    """
    every = (*checkpoint.relation.right, *checkpoint.aliases, *checkpoint.unresolved)
    drop = tuple(d for d in options.drop if any(fnmatchcase(n, d) for n in every))
    options = replace(options, drop=drop)
    made = prepare(settled(checkpoint), options)
    model = find_architecture(made.checkpoint, options, needed=False)
    named = name_tensors(made.checkpoint, options, model, made.terms)
    plan = plan_of(made.checkpoint, named.relation, named.casts, terms=named.terms)
    folder = model.config.folder if model.config is not None else None
    notes = (*_notes(made.checkpoint), *((n.level, n.text) for n in model.notes))
    family = model.family
    buffers = frozenset(n for n in named.relation.right if family is not None and family.is_ignored(n))
    aliases = dict(named.aliases)
    if family is not None and named.tied:
        head, embed = family.name_of("head"), family.name_of("embed")
        if head is not None and embed is not None and head not in named.relation.right:
            aliases.setdefault(head, embed)
    return View(plan, aliases, folder, buffers, notes)


def _notes(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    return tuple((n.level, n.text) for n in checkpoint.notes if n.level != "info")


def diff(
    a: PathArg,
    b: PathArg,
    *,
    config: str | None = None,
    family: str | None = None,
    weights: Weights | None = None,
    step: str | int | None = None,
    step_b: str | int | None = None,
    vocab_size: int | None = None,
    tensors: Sequence[str] = (),
    drop: Sequence[str] = (),
    atol: float = 0.0,
    rtol: float = 0.0,
    workers: int = 0,
    max_memory: int | str = DEFAULT_MEMORY,
    listen: Listener | None = None,
    progress: bool = False,
) -> Diff:
    """Compare two checkpoints of any formats, tensor by tensor; nothing is written.

    Where both have the same names and shapes they are compared as they are, else under Hugging Face's names.

    Args:
        a: The one.
        b: The other; relative differences are relative to its values.
        config: Folder or hub id of config.json, for both. By default that of each, else the other's.
        family: The architecture's table, for both.
        weights: fp32 masters or the 16-bit weights, where a checkpoint has both.
        step: The save to read of each side that is a run, not its newest.
        step_b: The save of B, where it is another.
        vocab_size: True rows of the vocabulary, where config and arguments do not say them.
        tensors: Glob patterns of the tensors to compare; all by default.
        drop: Glob patterns of tensors to leave out, by the names of either side.
        atol: Absolute difference allowed.
        rtol: Difference allowed relative to B's value.
        workers: Threads; 0 is two a core, at most 8.
        max_memory: The most all buffers together may take, in bytes.
        listen: Called with every event, from any thread.
        progress: Show a bar.

    Raises:
        UsageError: if a tolerance is negative, no tensor matches, or there is no such step.
        PlanError: if a checkpoint cannot be brought to Hugging Face's names.
        CkptconvError: if one cannot be read.
    """
    begin = perf_counter()
    if not (atol >= 0 and rtol >= 0):
        raise UsageError("a tolerance is a number from 0 on", hint="give --atol and --rtol such as 1e-6")
    asked = {"config": config, "family": family, "vocab_size": vocab_size, "drop": drop}
    options = request_of({n: v for n, v in asked.items() if v})
    steps = steps_of(a, b, step, step_b)
    one, two, said = _values(*_open((place(a), place(b)), steps, about_source({"weights": weights})))
    left, right, notes = _together(one, two, options)
    notes = [*said, *notes]
    same, only_a, only_b = _match(left, right)
    if tensors:
        same = [s for s in same if _matches(s.name, tensors)]
        only_a = [n for n in only_a if _matches(n, tensors)]
        only_b = [n for n in only_b if _matches(n, tensors)]
        if not (same or only_a or only_b):
            known = ", ".join(left.names[:3])
            raise UsageError(f"no tensor matches {' or '.join(tensors)}", hint=f"names are such as {known}")
    how = made(Options, {"workers": workers, "max_memory": max_memory})
    with following(listen, "comparing", progress=progress) as tell:
        found = compare(left.plan, right.plan, same, atol=atol, rtol=rtol, options=how, listen=tell)
    remarks = [
        *notes,
        *((level, f"A: {t}") for level, t in left.notes),
        *((level, f"B: {t}") for level, t in right.notes),
    ]
    return replace(
        found,
        a=str(place(a) if steps[0] is None else one.data),
        b=str(place(b) if steps[1] is None else two.data),
        only_a={n: left.plan.relation.right[n] for n in only_a},
        only_b={n: right.plan.relation.right[n] for n in only_b},
        seconds=perf_counter() - begin,
        notes=(*remarks, *_remarks(found)),
    )


def steps_of(
    a: PathArg, b: PathArg, step: str | int | None, step_b: str | int | None
) -> tuple[str | None, str | None]:
    """Return which save of each side is meant: ``step`` is about those that are runs, one at least."""
    here = None if step is None else str(step)
    theirs = here if step_b is None else str(step_b)
    if here is None or step_b is not None:
        return here, theirs
    runs = [has_steps(place(p), READERS) for p in (a, b)]
    one, two = runs if any(runs) else (True, True)
    return (here if one else None), (here if two else None)


def _open(
    paths: tuple[Path, Path], steps: tuple[str | None, str | None], given: Mapping[str, object]
) -> list[Checkpoint]:
    """Open two checkpoints; what is said is about those that have a choice, one of them at least."""
    owned = [options_of(find_reader(p)) if given else {} for p in paths]
    if given and not any(n in o for n in given for o in owned):
        owned = [dict.fromkeys(given)] * 2  # type: ignore[list-item]  # refused by its reader
    chosen = [{} if s is None else {"step": s} for s in steps]
    return [
        open_checkpoint(p, {**{n: v for n, v in given.items() if n in o}, **step})
        for p, o, step in zip(paths, owned, chosen, strict=True)
    ]


def _values(a: Checkpoint, b: Checkpoint) -> tuple[Checkpoint, Checkpoint, list[tuple[str, str]]]:
    """See quantised checkpoints as values, unless both hold codes and scales of the same kind."""
    found = [quantised(c) for c in (a, b)]
    coded = [q is not None and not q.decoded for q in found]
    if not any(coded) or (all(coded) and a.relation.right == b.relation.right):
        return a, b, []
    notes = []
    for side, one, is_coded in zip("AB", found, coded, strict=True):
        if is_coded and one is not None:
            notes.append(("info", f"{side} is {one.text}: compared by value"))
    left, right = (with_values(c) if is_coded else c for c, is_coded in zip((a, b), coded, strict=True))
    return left, right, notes


def _together(a: Checkpoint, b: Checkpoint, options: Request) -> tuple[View, View, list[tuple[str, str]]]:
    """See two checkpoints under one set of names."""
    left, right = as_opened(a), as_opened(b)
    if _entries(a) == _entries(b) and _shapes(left) == _shapes(right) and not options.drop:
        return _true_rows(a, b, left, right, options)
    views: list[View | None] = []
    errors: list[PlanError] = []
    for checkpoint in (a, b):
        try:
            views.append(under_hf_names(checkpoint, options))
        except PlanError as e:
            views.append(None)
            errors.append(e)
    one, two = views
    notes: list[tuple[str, str]] = []
    if options.config is None:
        one, two = _lend(a, one, two, options, "A", notes), _lend(b, two, one, options, "B", notes)
    if one is not None and two is not None:
        return one, two, notes
    if _entries(a) == _entries(b) and set(left.names) == set(right.names):
        text = f"compared under the names of {a.producer}: {errors[0].message}"
        return left, right, [("warning", text)]
    raise errors[0]


def _true_rows(
    a: Checkpoint, b: Checkpoint, left: View, right: View, options: Request
) -> tuple[View, View, list[tuple[str, str]]]:
    """Leave out the padding of the vocabulary, of which each framework makes something else."""
    rows = {true_rows(c, options) for c in (a, b)}
    if len(rows) != 1 or (count := rows.pop()) is None:
        return left, right, []
    one, two = (without_padding(c, count) for c in (a, b))
    if one is a or two is b:
        return left, right, []
    text = f"rows of the vocabulary from {count:,} on are padding, and not compared"
    return as_opened(one), as_opened(two), [("info", text)]


def _entries(checkpoint: Checkpoint) -> tuple[Entry, ...] | None:
    """Return how a checkpoint packs its tensors; old ones pack others under the same names."""
    return None if checkpoint.table is None else checkpoint.table.entries


def _lend(
    checkpoint: Checkpoint,
    own: View | None,
    other: View | None,
    options: Request,
    side: str,
    notes: list[tuple[str, str]],
) -> View | None:
    """See a checkpoint of unknown architecture or unknown vocabulary with the other's config.json."""
    if other is None or other.config is None:
        return own
    if own is not None and (own.config is not None or _shapes(own) == _shapes(other)):
        return own
    try:
        made = under_hf_names(checkpoint, replace(options, config=str(other.config)))
    except PlanError:
        return own
    if own is not None and _common(made, other) <= _common(own, other):
        return own
    notes.append(("info", f"{side} has no config.json: that of the other side is used"))
    return made


def _common(one: View, two: View) -> int:
    """Count the tensors that two have in the same shape."""
    return len(_shapes(one).items() & _shapes(two).items())


def _shapes(view: View) -> dict[str, tuple[int, ...]]:
    return {n: view.plan.relation.right[n].shape for n in view.names}


def _match(a: View, b: View) -> tuple[list[Same], list[str], list[str]]:
    """Find what both have; a name that only shares data on one side stands for that data."""
    ours, theirs = dict.fromkeys(a.names), dict.fromkeys(b.names)
    same = [Same(n, n, n) for n in ours if n in theirs]
    same += [Same(n, n, b.aliases[n]) for n in ours if n not in theirs and b.aliases.get(n) in theirs]
    same += [Same(n, a.aliases[n], n) for n in theirs if n not in ours and a.aliases.get(n) in ours]
    both = {s.name for s in same}
    return (
        same,
        [n for n in ours if n not in both and n not in a.buffers],
        [n for n in theirs if n not in both and n not in b.buffers],
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def _remarks(found: Diff) -> list[tuple[str, str]]:
    """Say what the numbers alone do not: types, NaNs, bits, copies that disagree."""
    said: list[tuple[str, str]] = []
    types: dict[tuple[str, str], int] = {}
    for t in found.tensors:
        if t.dtype != t.dtype_b:
            types[t.dtype, t.dtype_b] = types.get((t.dtype, t.dtype_b), 0) + 1
    for (one, two), count in types.items():
        said.append(("warning", f"{count} x {one} in A, {two} in B; the values are compared as float64"))
    nans = [t for t in found.tensors if any(t.nans)]
    if nans:
        total = sum(t.nans[0] for t in nans), sum(t.nans[1] for t in nans)
        text = (
            f"{total[0]} values of A and {total[1]} of B are NaN, as in {nans[0].name}; NaN equals NaN here"
        )
        said.append(("warning", text))
    bits = sum(t.bits for t in found.tensors)
    if bits:
        said.append(("info", f"{bits} values are equal, but not their bits: signed zeros or NaNs"))
    for t in found.tensors:
        said += [("warning", f"the copies of {t.name} disagree: {text}") for text in t.conflicts]
    return said
