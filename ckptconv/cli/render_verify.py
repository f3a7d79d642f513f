"""Show to people what a verification found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptconv.cli import render
from ckptconv.cli.clean import escape
from ckptconv.cli.console import new_table, notes, plural, results, size
from ckptconv.errors import CkptconvError
from ckptconv.numbers.rates import speed_text, took
from ckptconv.verify.certificate import NAME, Checked
from ckptconv.verify.result import Mismatch, Result

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["checked", "describe", "result"]

_SHOWN = 20


def describe(path: Path, **choice: Any) -> dict[str, Any] | None:
    """Return what ``inspect --json`` prints, for a report; None if that takes flags it does not have."""
    from ckptconv.api.model import open as open_model

    try:
        return render.describe(open_model(path, **choice), None)
    except CkptconvError:
        return None


def result(found: Result, *, certified: bool) -> None:
    """Print a verification: what was compared and how, and the first of what differs."""
    console = results()
    head = new_table("", "")
    head.show_header = False
    for key, value in _rows(found, certified).items():
        head.add_row(f"[dim]{key}[/]", escape(value))
    console.print(head)
    if found.mismatches:
        console.print()
        console.print(_mismatches(found.mismatches))
        _places(console, found.mismatches)
        if len(found.mismatches) > _SHOWN:
            console.print(f"[dim]... and {len(found.mismatches) - _SHOWN} more; --json lists all[/]")
    notes(found.notes)
    if found.ok:
        what = "every bit is as the source says" if found.out else "the source is sound"
        console.print(f"[bold green]verified:[/] {what}")
    else:
        kinds = ", ".join(f"{n} x {kind}" for kind, n in Counter(m.kind for m in found.mismatches).items())
        console.print(f"[bold red]differs:[/] {plural(len(found.mismatches), 'difference')} ({kinds})")


def _rows(found: Result, certified: bool) -> dict[str, str]:
    proof = found.proof
    inverse = "there and back is the identity" if proof.complete else "refuted"
    if proof.one_way:
        inverse += f"; without an inverse, so computed again: {', '.join(proof.one_way)}"
    rate = speed_text(found.bytes, found.seconds)
    rows = {
        "source": found.source,
        "output": found.out or "",
        "proof": f"{proof.pairs:,} boxes, {inverse}{took(proof.seconds)}",
        "compared" if found.out else "read": f"{plural(found.tensors, 'tensor')}, {size(found.bytes)}",
        "replicas": f"{found.replicas}, {size(found.replica_bytes)}" if found.replicas else "",
        "casts": "; ".join(found.casts),
        "time": f"{found.seconds:.1f} s" + (f", {rate}" if rate else ""),
        "certificate": NAME if certified else "",
    }
    if found.logits is not None:
        near = "" if found.logits.largest is None else f", {found.logits.largest:.3g} from the reference"
        error = found.logits.error
        ran = f"{len(found.logits.prompt)} tokens in {found.logits.dtype}{near}"
        rows["logits"] = ran if error is None else error.message
    return {k: v for k, v in rows.items() if v}


def _mismatches(found: tuple[Mismatch, ...]) -> Any:
    table = new_table("tensor", "what", "first", "largest", right=("largest",))
    for m in found[:_SHOWN]:
        first = "" if m.index is None else "[" + ", ".join(map(str, m.index)) + "]"
        largest = "" if m.largest is None else f"{m.largest:.3g}"
        table.add_row(escape(m.tensor), escape(m.text), escape(first), largest)
    return table


def _places(console: Console, found: tuple[Mismatch, ...]) -> None:
    """Print where the first element of each difference lies, in whole lines that can be copied."""
    for m in found[:_SHOWN]:
        for place, what in ((m.output, "in"), (m.source, "from")):
            if place is not None:
                name = "" if place.tensor == m.tensor else f" ({place.tensor})"
                text = escape(f"{place.file} at byte {place.byte}{name}")
                console.print(f"[dim]{escape(m.tensor)} {what}:[/] {text}", soft_wrap=True)


def checked(found: Checked) -> None:
    """Print how files compare with their certificate."""
    console = results()
    for name, text in found.wrong.items():
        console.print(f"[bold red]{escape(name)}[/] {escape(text)}")
    notes(tuple(("warning", f"{name} is not in the certificate") for name in found.extra))
    said = found.certificate
    what = f"{plural(found.files, 'file')}, {size(found.bytes)}; from {said['source']}, {said['tool']}"
    if found.ok:
        console.print(f"[bold green]unchanged:[/] {escape(what)}, plan {escape(str(said['plan'])[:12])}")
    else:
        console.print(f"[bold red]changed:[/] {len(found.wrong)} of {escape(what)}")
