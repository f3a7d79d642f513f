"""Show checkpoints, plans, progress and results to people; results go to stdout, notes to stderr."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptconv.api.architectures import Architectures
from ckptconv.api.model import Model
from ckptconv.cli.clean import escape
from ckptconv.cli.console import keep_notes, lines, new_table, notes, plural, results, size
from ckptconv.dtypes import dtype
from ckptconv.engine.options import Options, Report, default_workers, peak_memory
from ckptconv.numbers.rates import speed_text
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import Plan

if TYPE_CHECKING:
    from ckptconv.verify.explain import Explained

__all__ = ["describe", "done", "families", "inspect", "plan", "result"]

_STEPS = 12  # that are printed
_EXPLAINED = 6  # tensors whose holders are printed
_BASE_MEMORY = 60_000_000  # the interpreter and its libraries, measured


def describe(model: Model, pattern: str | None, path: Path | None = None) -> dict[str, Any]:
    """Return what ``inspect --json`` prints; with what is known beside the weights for a path."""
    from ckptconv.api.outlook import outlook
    from ckptconv.verify.overview import overview

    c = model.checkpoint
    named = {n: s for n, s in model.relation.right.items() if pattern is None or fnmatchcase(n, pattern)}
    return {
        "producer": c.producer,
        "format": c.format,
        "versions": dict(c.versions),
        "layout": dict(c.layout),
        "step": c.iteration,
        "root": str(c.root),
        "data": str(c.data),
        "weights": c.weights,
        "dtypes": {d: n for d, (n, _) in _by_dtype(model).items()},
        "bytes": sum(_nbytes(s.shape, s.dtype) for s in model.relation.right.values()),
        "parameters": sum(s.numel for n, s in model.relation.right.items() if n not in c.buffers),
        "tensors": [
            {"name": n, "shape": list(s.shape), "dtype": s.dtype, "buffer": n in c.buffers}
            for n, s in named.items()
        ],
        "aliases": dict(c.aliases),
        "unresolved": list(c.unresolved),
        "files": [{"path": f.path, "bytes": f.size} for f in c.files],
        "left_out": dict(c.left_out),
        "quantised": [] if c.quantised is None else list(c.quantised.kinds),
        **overview(c),
        **({} if pattern is None else {"held": [e.to_dict() for e in _held(c, list(named))]}),
        "notes": [{"level": n.level, "text": n.text} for n in c.notes],
        **({} if path is None else {"outlook": asdict(outlook(path, c))}),
    }


def _held(checkpoint: Checkpoint, names: Sequence[str]) -> list[Explained]:
    from ckptconv.api.explain import explain_in

    return explain_in(checkpoint, names)


def _nbytes(shape: tuple[int, ...], name: str) -> int:
    total = dtype(name).itemsize
    for n in shape:
        total *= n
    return total


def _by_dtype(model: Model) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for s in model.relation.right.values():
        count, total = found.get(s.dtype, (0, 0))
        found[s.dtype] = (count + 1, total + s.numel)
    return found


def inspect(model: Model, pattern: str | None, path: Path) -> None:
    """Print a checkpoint's summary and its biggest tensors, or the tensors asked for and who holds them."""
    from ckptconv.cli import render_grid

    c, console = model.checkpoint, results()
    data = describe(model, None, path)
    beside = data["outlook"]
    steps, more = beside["steps"], max(0, len(beside["steps"]) - _STEPS)
    head = new_table("", "")
    head.show_header = False
    layout = "  ".join(f"{k} {v}" for k, v in c.layout.items() if k != "zero_stage")
    rows = {
        "producer": " ".join([c.producer, *(f"{v}" for v in c.versions.values())]),
        "format": c.format,
        "layout": layout,
        "step": c.iteration,
        "read from": c.data,
        "weights": {"master": "fp32 masters", "model": "as the model ran"}[c.weights],
        "parameters": f"{data['parameters']:,}",
        "tensors": f"{len(model):,} ("
        + ", ".join(f"{n:,} {d}" for d, (n, _) in _by_dtype(model).items())
        + f"), {size(data['bytes'])}",
        "files": f"{len(c.files):,}, {size(sum(f.size for f in c.files))}",
        "tied": ", ".join(f"{a} = {b}" for a, b in c.aliases.items()),
        "buffers": ", ".join(sorted(c.buffers)[:6]) + (" ..." if len(c.buffers) > 6 else ""),
        "no data for": ", ".join(c.unresolved[:6]),
        "family": beside["family"],
        "config.json": beside["config"] or f"none: {beside['lacking']}",
        "tokenizer": beside["tokenizer"] or "none found",
        "LoRA": f"adapters of {plural(beside['adapters'], 'weight')}" if beside["adapters"] else "",
        "steps": ", ".join(map(str, steps[-_STEPS:])) + (f" and {more} before" if more else ""),
    }
    for key, value in rows.items():
        if value not in (None, ""):
            head.add_row(f"[dim]{key}[/]", escape(str(value)))
    console.print(head)
    render_grid.stages(data["holders"], c.stages, title="ranks")
    if pattern is None:
        chosen = sorted(model.relation.right.items(), key=lambda kv: -_nbytes(kv[1].shape, kv[1].dtype))[:8]
        title = "biggest tensors"
    else:
        chosen = [(n, s) for n, s in model.relation.right.items() if fnmatchcase(n, pattern)]
        title = f"{plural(len(chosen), 'tensor')} matching {escape(pattern)}"
    table = new_table("name", "shape", "dtype", "size", right=("size",), title=title)
    for name, s in chosen:
        table.add_row(
            escape(name), "x".join(map(str, s.shape)) or "scalar", s.dtype, size(_nbytes(s.shape, s.dtype))
        )
    console.print()
    console.print(table)
    if pattern is not None:
        render_grid.slices(_held(c, [n for n, _ in chosen[:_EXPLAINED]]))
        if len(chosen) > _EXPLAINED:
            console.print(f"[dim]who holds the other {len(chosen) - _EXPLAINED}: --json says[/]")
    console.print(f"\n[dim]next[/]  {escape(beside['command'])}", soft_wrap=True)
    notes(tuple((n.level, n.text) for n in c.notes))


_BUILT = {"found": "from arguments", "named": "if they name it", "given": "--config"}


def families(found: Sequence[Architectures]) -> None:
    """Print the architectures, a line each."""
    table = new_table("family", "model_type", "config.json", "MTP", "beside the language model", "dialects")
    for f in found:
        parts, dialects = escape(", ".join(f.parts)), ", ".join(f.dialects)
        mtp = "yes" if f.mtp else ""
        table.add_row(f.family, ", ".join(f.model_types), _BUILT[f.config], mtp, parts, dialects)
    results().print(table)


def plan(made: Plan, options: Options) -> None:
    """Print a plan: ranks, files, every step that is not a plain copy, and the memory it takes."""
    from ckptconv.cli import render_grid
    from ckptconv.verify.overview import holders_of_keys

    console = results()
    files = new_table("file", "tensors", "size", "from", right=("tensors", "size"))
    for f in made.files[:20]:
        files.add_row(escape(f.name), f"{len(f.layout.tensors):,}", size(f.layout.size), "the weights")
    if len(made.files) > 20:
        files.add_row(f"... {len(made.files) - 20} more", "", "", "")
    for a in made.assets:
        files.add_row(escape(a.name), "", size(len(a.content)), escape(a.origin))
    console.print(files)
    if made.steps:
        console.print()
        steps = new_table("step", "what", "why")
        kinds = Counter[str]()
        for s in made.steps:
            kinds[s.kind] += 1
            if kinds[s.kind] <= 12:
                steps.add_row(s.kind, escape(s.what), escape(s.why))
        console.print(steps)
        for kind, count in kinds.items():
            if count > 12:
                console.print(f"[dim]... and {count - 12} more of kind {kind}; --json lists all[/]")
    for title, side in (("ranks of the source", made.relation.left), ("ranks written", made.relation.right)):
        render_grid.stages(*holders_of_keys(side), title=title, counted=True)
    workers = options.workers or default_workers()
    tensors = sum(len(f.layout.tensors) for f in made.files)
    console.print()
    memory = size(_BASE_MEMORY + peak_memory(options))
    if options.engine == "ray":
        who = f"on a Ray cluster, at most {size(options.max_memory)} of buffers a task"
    else:
        who = f"{plural(workers, 'thread')}, peak memory about {memory}"
    console.print(
        f"{plural(tensors, 'tensor')}, {size(made.bytes_out)} in {plural(len(made.files), 'file')}; "
        f"{who}; plan {made.digest()[:12]}"
    )
    notes(made.notes)


def result(made: Plan, report: Report, seconds: float) -> dict[str, Any]:
    """Return what ``--json`` prints when a conversion is done."""
    return {
        "out": report.folder,
        "digest": made.digest(),
        "tensors": sum(len(f.layout.tensors) for f in made.files),
        "bytes": report.bytes_out,
        "resumed_bytes": report.resumed,
        "seconds": round(seconds, 3),
        "overflows": report.overflows,
        "removed": list(report.removed),
        "files": [{"name": n, "digest": d} for n, d in report.files.items()],
        "assets": [a.name for a in made.assets],
        "steps": [s.to_dict() for s in made.steps],
        "notes": [{"level": level, "text": text} for level, text in made.notes],
    }


def done(made: Plan, report: Report, seconds: float, *, last: bool) -> None:
    """Print what was written; with the notes if nothing follows that prints them."""
    console = lines(sys.stdout)
    tensors = sum(len(f.layout.tensors) for f in made.files)
    kinds = Counter(s.kind for s in made.steps)
    for s in made.steps:
        if s.kind in ("cast", "alias", "config") and kinds[s.kind] <= 6:
            console.print(f"[dim]{s.kind}:[/] {escape(s.what)} [dim]({escape(s.why)})[/]")
    for kind, count in kinds.items():
        if kind in ("drop", "rename", "compare") or count > 6:
            console.print(f"[dim]{kind}:[/] {plural(count, 'field' if kind == 'config' else 'tensor')}")
    if report.overflows:
        into = sorted({chain[-1].name for chain in made.casts.values()})
        which = " or ".join(into) or "the dtype written"
        text = f"{report.overflows:,} values are too large for {which} and became infinite"
        keep_notes((("warning", text),))
    if report.removed:
        text = f"removed of the model that was there: {', '.join(report.removed)}"
        keep_notes((("info", text),))
    if last:
        notes()
    rate = speed_text(report.bytes_out - report.resumed, seconds)
    how = f"{seconds:.1f} s" + (f" ({rate})" if rate and report.resumed < report.bytes_out else "")
    if report.bytes_out and report.resumed == report.bytes_out:
        how += ", all of it was there"
    console.print(
        f"[bold green]done[/] {plural(tensors, 'tensor')}, {size(report.bytes_out)} in "
        f"{plural(len(made.files), 'file')}, {how}: {escape(report.folder)}"
    )
