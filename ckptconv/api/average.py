"""Average the weights of several checkpoints of one model: plan it, write it, plan it again to compare."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import fsum, isfinite
from pathlib import Path
from typing import Any

from ckptconv.api.ls import choose
from ckptconv.api.progress import following
from ckptconv.assets.find import CONFIG
from ckptconv.engine.events import Listener
from ckptconv.engine.options import Options, Report
from ckptconv.engine.run import run
from ckptconv.errors import CkptconvError, FormatError, OutputError, PlanError, UsageError, without_secrets
from ckptconv.families import Family, family_of
from ckptconv.families.config import facts_of, flat, same
from ckptconv.places.jsonfile import read_json
from ckptconv.places.places import PathArg, is_remote, place
from ckptconv.planning.average import Part, averaged
from ckptconv.planning.plan import open_source, plan_checkpoint
from ckptconv.planning.request import request_of
from ckptconv.plans.options import flag_of, made
from ckptconv.plans.plan import AssetFile, Plan
from ckptconv.plans.request import Request
from ckptconv.readers.reader import options_of
from ckptconv.readers.registry import READERS, find_reader
from ckptconv.records import dataclass
from ckptconv.verify.beside import IDLE

__all__ = ["RECORD", "Averaged", "average", "plan_average", "read_record"]

RECORD = "ckptconv-average.json"
"""The file beside the weights that says what they are the average of."""

_VERSION = 1
_CLOSE = 1e-6  # to 1, of a sum of ratios as people write them
# Of config.json: what a model generates from, and how many ranks trained it, which does not change what it
# computes.
_SAID = (*IDLE, "bos_token_id", "eos_token_id", "pad_token_id", "architectures", "pretraining_tp")


@dataclass(frozen=True, slots=True)
class Averaged:
    """Say what is averaged.

    Attributes:
        sources: The checkpoints.
        ratios: What each is multiplied by.
        steps: Which step of each run; None is the newest.
        fields: Options of the conversion, the same for all.
    """

    sources: tuple[str, ...]
    ratios: tuple[float, ...]
    steps: tuple[str | None, ...]
    fields: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """What the sources are called for people."""
        found = zip(self.sources, self.steps, strict=True)
        return tuple([path if step is None else f"{path} (step {step})" for path, step in found])


def average(
    sources: PathArg | Sequence[PathArg],
    out: PathArg,
    *,
    ratios: Sequence[float] | None = None,
    steps: str | Sequence[str | int | None] | None = None,
    workers: int = 0,
    max_memory: str | int = "96MiB",
    resume: bool = False,
    overwrite: bool = False,
    engine: str = "local",
    address: str | None = None,
    listen: Listener | None = None,
    progress: bool = False,
    **fields: Any,
) -> Report:
    """Write the weighted mean of several checkpoints of one model as a Hugging Face model.

    Each tensor is the sum of ``ratio * value`` in float32, in the order of the sources, rounded once. Config
    and tokenizer are the first one's. Memory grows neither with the model nor with the number of sources.

    Args:
        sources: The checkpoints, of any formats; one, if it is a run of which there are several ``steps``.
        out: The output folder; new or empty unless ``overwrite`` or ``resume``.
        ratios: What each is multiplied by; together 1. All the same if not given.
        steps: Of each run ``last:5``, ``100,200`` or ``all``; or one step for each source, None for the
            newest.
        workers: Threads; 0 is two a core, at most 8.
        max_memory: The most all buffers together may take.
        resume: Go on with an interrupted run.
        overwrite: Replace the model in ``out``.
        engine: ``local``, or ``ray`` for a Ray cluster.
        address: The cluster's.
        listen: Called with every event of the run, from any thread.
        progress: Show a bar.
        **fields: What to write, and what is said about the sources, as in `ckptconv.convert`.

    Raises:
        UsageError: if an option is unknown or no source understands it, or ratios do not fit.
        PlanError: if the sources differ in names, shapes or element types, or in what config.json says of the
            model.
        MismatchError: if numbers that have no mean differ: whole numbers, buffers.
    """
    given = {"workers": workers, "max_memory": max_memory, "resume": resume, "overwrite": overwrite}
    how = made(Options, {**given, "engine": engine, "address": address})
    plan = plan_average(sources, out, ratios=ratios, steps=steps, **fields)
    with following(listen, "averaging", progress=progress) as tell:
        return run(plan, place(out), how, tell)


def plan_average(
    sources: PathArg | Sequence[PathArg],
    out: PathArg | None = None,
    *,
    ratios: Sequence[float | str] | None = None,
    steps: str | Sequence[str | int | None] | None = None,
    **fields: Any,
) -> Plan:
    """Plan an average from metadata alone; arguments and errors are those of `average`."""
    named = [sources] if isinstance(sources, (str, os.PathLike)) else [*sources]
    found: list[tuple[PathArg, str | int | None]]
    if isinstance(steps, str):
        found = [(run, save.name) for run in named for save in choose(run, steps)]
    else:
        found = [(path, None) for path in named] if steps is None else [*zip(named, steps, strict=False)]
        if steps is not None and len(steps) != len(named):
            raise UsageError(f"{len(steps)} steps for {len(named)} checkpoints", hint="give one for each")
    paths = tuple([str(path) for path, _ in found])
    chosen = tuple([None if step is None else str(step) for _, step in found])
    if len(paths) < 2:
        raise UsageError(
            "an average is of at least two checkpoints",
            hint="name all of them, or several steps of a run: --steps last:5",
        )
    if out is not None:
        _refuse_onto(paths, place(out))
    return plan_again(Averaged(paths, _checked(ratios, len(paths)), chosen, fields))


def plan_again(what: Averaged) -> Plan:
    """Plan what is said to be averaged."""
    request = _request(what)
    given = [_understood(place(path), request.reading) for path in what.sources]
    for name in request.reading:
        if not any(name in options for options in given):
            raise _idle(name)
    parts, equal = [], set[str]()
    for path, ratio, step, label, reading in zip(
        what.sources, what.ratios, what.steps, what.labels, given, strict=True
    ):
        how = replace(request, reading={**reading, **({} if step is None else {"step": step})})
        checkpoint = open_source(how, place(path))
        parts.append(Part(label, plan_checkpoint(checkpoint, how), ratio))
        equal |= set(checkpoint.buffers)
    first = _config(parts[0].plan)
    family = None if first is None else family_of(first)
    if first is not None and family is not None and family.entries:
        unknown = family.table(first).named(parts[0].plan.relation.right)[1]
        equal |= {n for n in unknown if family.is_ignored(n)}
    plan = averaged(parts, equal)
    notes = []
    for part in parts[1:]:
        notes += _same_model(parts[0], part, family)
    record = AssetFile(RECORD, "what is averaged", _record(what), derived=True)
    said = tuple(dict.fromkeys((*plan.notes, *notes)))
    return replace(plan, assets=(record, *plan.assets), notes=said)


def read_record(folder: PathArg) -> Averaged | None:
    """Return what the model in a folder is the average of; None if it is none.

    Raises:
        FormatError: if the record is damaged.
    """
    path = place(folder) / RECORD
    if not path.is_file():
        return None
    try:
        said = read_json(path)
        if said["version"] != _VERSION:
            raise FormatError(
                f"the record is of version {said['version']!r}, this ckptconv reads {_VERSION}",
                where=path,
                hint="update ckptconv",
            )
        sources = said["sources"]
        found = Averaged(
            tuple(str(s["path"]) for s in sources),
            tuple(float(s["ratio"]) for s in sources),
            tuple(None if s.get("step") is None else str(s["step"]) for s in sources),
            dict(said["options"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise FormatError(f"this is no record of an average: {e}", where=path) from e
    return found


def _record(what: Averaged) -> bytes:
    sources = [
        {"path": _lasting(path), "ratio": ratio, **({} if step is None else {"step": step})}
        for path, ratio, step in zip(what.sources, what.ratios, what.steps, strict=True)
    ]
    options = {n: _plain(v) for n, v in sorted(what.fields.items()) if v not in (None, (), [], {})}
    text = json.dumps({"version": _VERSION, "sources": sources, "options": options}, indent=1)
    return (without_secrets(text) + "\n").encode()


def _lasting(path: str) -> str:
    """Return a path that does not depend on the working folder."""
    return path if is_remote(path) else os.path.abspath(path)


def _plain(value: object) -> Any:
    """Return an option's value as JSON has it; a path that is here, so that it can be found again."""
    if isinstance(value, os.PathLike) or (isinstance(value, str) and os.path.exists(value)):
        return _lasting(str(value))
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _request(what: Averaged) -> Request:
    """Return what every source is asked for: values, to Hugging Face's names."""
    if "to" in what.fields and what.fields["to"] != "hf":
        raise UsageError(
            "an average is written as a Hugging Face model", hint="convert that to other formats"
        )
    request = request_of({**what.fields, "to": "hf", "dequantize": True})
    if request.writing.quantize is not None:
        raise UsageError(
            "an average is not quantised on the way", hint="convert it with --quantize afterwards"
        )
    if request.lora == "adapter":
        raise UsageError(
            "the mean of adapters is no adapter of the mean", hint="average the merged models: --lora merge"
        )
    return request


def _checked(ratios: Sequence[float | str] | None, count: int) -> tuple[float, ...]:
    """Return the ratios.

    Raises:
        UsageError: if they are not as many, not above 0, or not 1 together.
    """
    if ratios is None:
        return (1 / count,) * count
    try:
        found = tuple([float(r) for r in ratios])
    except (TypeError, ValueError):
        raise UsageError(f"ratios are not {ratios!r}", hint="give numbers such as 0.5, 0.3, 0.2") from None
    if len(found) != count:
        raise UsageError(
            f"{len(found)} ratio{'' if len(found) == 1 else 's'} for {count} checkpoints",
            hint="give one for each, in their order",
        )
    if not all(isfinite(r) and r > 0 for r in found):
        raise UsageError(
            f"a ratio is not above 0: {', '.join(f'{r:g}' for r in found)}", hint="leave the source out"
        )
    total = fsum(found)
    if abs(total - 1) > _CLOSE:
        raise UsageError(
            f"the ratios are {total:g} together, not 1",
            hint=f"of these {', '.join(f'{r / total:.8g}' for r in found)} would be in the same proportion",
        )
    return found


def _refuse_onto(sources: Sequence[str], out: Path) -> None:
    for path in sources:
        if place(path).resolve() == out.resolve():
            raise OutputError(
                "the output folder is one that is averaged", where=out, hint="choose another folder"
            )


def _understood(path: Path, reading: Mapping[str, object]) -> dict[str, object]:
    """Return what of the options is about a source of this kind."""
    try:
        owned = options_of(find_reader(path))
    except CkptconvError:  # said when it is opened
        return dict(reading)
    return {n: v for n, v in reading.items() if n in owned}


def _idle(name: str) -> UsageError:
    owners = [r for r in READERS if name in options_of(r)]
    flag = flag_of(name, options_of(owners[0])[name]) if owners else name
    return UsageError(
        f"{flag} says nothing about any of the sources",
        hint=f"leave it out: it is for checkpoints of {', '.join(r.name for r in owners)}",
    )


def _config(plan: Plan) -> dict[str, Any] | None:
    """Return the config a plan writes; None if it writes none."""
    found = next((a for a in plan.assets if a.name == CONFIG), None)
    return None if found is None else dict(json.loads(found.content))


def _is_built(plan: Plan) -> bool:
    return any(a.derived for a in plan.assets if a.name == CONFIG)


def _same_model(first: Part, other: Part, family: Family | None) -> list[tuple[str, str]]:
    """Compare what two sources' configs say of the model; return what differs and changes nothing.

    Raises:
        PlanError: if they say that it computes otherwise, naming the fields.
    """
    one, two = _config(first.plan), _config(other.plan)
    if one is None or two is None:
        return []
    built = _is_built(first.plan) or _is_built(other.plan)
    refused = list(_facts(one, two, family)) if built else []
    said: list[str] = []
    assumed = family.template.assumed if family is not None and family.template is not None else {}
    ours, theirs = ({k: v for k, v in flat(c).items() if k != "rope_parameters"} for c in (one, two))
    for key in dict.fromkeys((*ours, *theirs)):
        a, b = ours.get(key, assumed.get(key)), theirs.get(key, assumed.get(key))
        if a == b or (built and not (key in ours and key in theirs)):  # one that is built says less
            continue
        text = f"{key} is {_short(a)} and {_short(b)}"
        (said if any(fnmatchcase(key, p) for p in _SAID) else refused).append(text)
    if refused:
        raise PlanError(
            f"{CONFIG} differs between {first.label} and {other.label}: {'; '.join(dict.fromkeys(refused))}",
            where=other.label,
            hint="only checkpoints of one model have a mean; --config takes one for all",
        )
    where = f"{CONFIG} of {other.label} differs, that of {first.label} is taken"
    return [("info", f"{where}: {'; '.join(said)}")] if said else []


def _facts(one: Mapping[str, Any], two: Mapping[str, Any], family: Family | None) -> Iterator[str]:
    """Say where two configs, of which one is built, mean something else, whatever their keys are."""
    if family is None or family.template is None or one.get("model_type") != two.get("model_type"):
        return
    ours, theirs = facts_of(one, family), facts_of(two, family)
    for name in sorted(ours.keys() & theirs.keys() - {"dtype", "tied", "bos", "eos", "pad"}):
        a, b = ours[name], theirs[name]
        if not same(name, a.value, b.value):
            yield f"{b.origin.removeprefix('config.')} is {_short(a.value)} and {_short(b.value)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
