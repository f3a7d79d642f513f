"""Show comparisons and explanations to people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from ckptconv.api.explain import Match
from ckptconv.cli.clean import escape
from ckptconv.cli.console import new_table, notes, plural, results, size
from ckptconv.numbers.rates import speed_text
from ckptconv.places.places import place
from ckptconv.verify.explain import Explained, FileRange, Piece
from ckptconv.verify.outcome import Diff, TensorDiff

__all__ = ["diff", "explain", "matches"]

_SHOWN = 20


def diff(found: Diff, *, everything: bool) -> None:
    """Print what differs, the most first; with ``everything`` equal tensors as well."""
    console = results()
    for what, side in (("only in A", found.only_a), ("only in B", found.only_b)):
        if side:
            table = new_table(what, "shape", "dtype")
            for name, spec in list(side.items())[: None if everything else _SHOWN]:
                table.add_row(escape(name), "x".join(map(str, spec.shape)) or "scalar", spec.dtype)
            console.print(table)
            if len(side) > _SHOWN and not everything:
                console.print(f"[dim]... and {len(side) - _SHOWN} more; --all lists them[/]")
            console.print()
    chosen = [t for t in found.tensors if everything or t.verdict != "equal"]
    if chosen:
        table = new_table(
            "tensor",
            "relative",
            "largest",
            "mean",
            "differ",
            "at",
            right=("relative", "largest", "mean", "differ"),
        )
        for t in chosen if everything else chosen[:_SHOWN]:
            table.add_row(*_row(t))
        console.print(table)
        if len(chosen) > _SHOWN and not everything:
            console.print(f"[dim]... and {len(chosen) - _SHOWN} more; --all lists them[/]")
        console.print()
    notes(found.notes)
    _verdict(found)


def _row(t: TensorDiff) -> tuple[str, ...]:
    if t.verdict == "shape":
        shapes = " and ".join("x".join(map(str, s)) or "scalar" for s in (t.shape, t.shape_b))
        return escape(t.name), "[red]shape[/]", "", "", "", shapes
    if not t.count and not t.conflicts:
        return escape(t.name), "[green]equal[/]", "", "", "", ""
    colour = "red" if t.verdict == "differs" else "yellow"
    share = 100 * t.count / max(1, _numel(t))
    at = "" if t.index is None else escape("[" + ", ".join(map(str, t.index)) + "]")
    if t.unbounded:
        at += f" ({t.unbounded:,} NaN or infinite)"
    if t.conflicts:
        at += " copies disagree"
    return (
        escape(t.name),
        f"[{colour}]{t.relative:.2e}[/]",
        f"{t.largest:.2e}",
        f"{t.mean:.2e}",
        f"{share:.3g}%",
        at,
    )


def _numel(t: TensorDiff) -> int:
    total = 1
    for n in t.shape:
        total *= n
    return total


def _verdict(found: Diff) -> None:
    counts = found.counts()
    words = {
        "equal": "equal",
        "within": "within the tolerances",
        "differs": "differ",
        "shape": "of another shape",
        "only_a": "only in A",
        "only_b": "only in B",
    }
    said = ", ".join(f"{counts[k]:,} {word}" for k, word in words.items() if counts[k])
    rate = speed_text(found.bytes, found.seconds)
    head = "[bold green]equal:[/]" if found.ok else "[bold red]different:[/]"
    compared = f"{size(found.bytes)} in {found.seconds:.1f} s" + (f", {rate}" if rate else "")
    results().print(f"{head} {said or 'no tensors'} ({compared})")


def matches(found: Sequence[Match]) -> None:
    """Print the tensors a pattern matches."""
    table = new_table(
        "name", "of", "shape", "dtype", title=f"{plural(len(found), 'tensor')}; name one of them"
    )
    for m in found:
        table.add_row(escape(m.name), m.names, "x".join(map(str, m.spec.shape)) or "scalar", m.spec.dtype)
    results().print(table)


def explain(found: Explained) -> None:
    """Print the tree of a tensor: ranks or files, boxes, bytes."""
    paths = [r.path for p in found.pieces for r in p.ranges]
    folder = os.path.commonpath([os.path.dirname(p) for p in paths]) if paths else ""
    shape = "x".join(map(str, found.shape)) or "scalar"
    lines: list[str] = []
    if found.asked is not None:
        lines.append(f"{escape(found.asked)} shares its data (tied)")
    if found.quantised:
        lines.append(f"quantised: {escape(found.quantised)}")
    if found.casts:
        lines.append(f"cast {' -> '.join(found.casts)}")
    lines += [f"{n:,} elements are stored nowhere: {escape(reason)}" for reason, n in found.absent.items()]
    if folder:
        lines.append(f"in {escape(str(place(folder)))}")
    tree: list[_Node] = [(line, []) for line in lines]
    tree += _branches([p for p in found.pieces if not p.copy], folder)
    copies = [p for p in found.pieces if p.copy]
    if copies:
        tree.append((f"{plural(len(copies), 'replica')}, to be equal", _branches(copies, folder)))
    console = results()
    head = f"[bold]{escape(found.name)}[/] {shape} {found.dtype} [dim]({escape(found.names)})[/]"
    console.print(head, soft_wrap=True)
    for line in _drawn(tree):
        console.print(line, soft_wrap=True)


_Node = tuple[str, list[Any]]
"""A line of a tree, and the nodes below it."""


def _drawn(nodes: Sequence[_Node], before: str = "") -> Iterator[str]:
    for i, (line, below) in enumerate(nodes):
        last = i == len(nodes) - 1
        yield f"[dim]{before}{'└── ' if last else '├── '}[/]{line}"
        yield from _drawn(below, before + ("    " if last else "│   "))


def _branches(pieces: Sequence[Piece], folder: str) -> list[_Node]:
    """Make a node of each rank, or of each part where files are not of ranks."""
    made: list[_Node] = []
    ranks: dict[str, list[_Node]] = {}
    shown = pieces[: _SHOWN * 5]
    for piece in shown:
        whole = "all of it" if piece.here.is_whole else str(piece.here)
        below: list[_Node] = [(_bytes(r, folder), []) for r in piece.ranges[:_SHOWN]]
        if len(piece.ranges) > _SHOWN:
            below.append((f"... and {len(piece.ranges) - _SHOWN} more files; --json lists all", []))
        role = f"{escape(piece.role)} " if piece.role else ""
        node = (f"{escape(whole)} [dim]from[/] {role}{escape(piece.stored)} {_there(piece)}", below)
        if not piece.ranks:
            made.append(node)
            continue
        head = ", ".join(piece.ranks)
        if head not in ranks:
            ranks[head] = []
            made.append((f"[cyan]{escape(head)}[/]", ranks[head]))
        ranks[head].append(node)
    if len(pieces) > len(shown):
        made.append((f"... and {len(pieces) - len(shown)} more parts; --json lists all", []))
    return made


def _there(piece: Piece) -> str:
    shape = "x".join(map(str, piece.there.shape)) or "scalar"
    part = f"{shape} {piece.dtype}"
    if not piece.there.is_whole:
        part = f"{piece.there} of {part}"
    return escape(part) + (", axes in another order" if piece.reordered else "")


def _bytes(where: FileRange, folder: str) -> str:
    runs = "" if where.runs == 1 else f", {size(where.nbytes)} in {where.runs:,} runs"
    return f"{escape(os.path.relpath(where.path, folder))} bytes {where.first:,} - {where.end - 1:,}{runs}"
