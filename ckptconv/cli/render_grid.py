"""Show ranks to people: what each pipeline stage holds, and who holds which slice of a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckptconv.cli.clean import escape
from ckptconv.cli.console import new_table, results, size
from ckptconv.verify.overview import layers_text, pipeline

if TYPE_CHECKING:
    from ckptconv.verify.explain import Explained

__all__ = ["slices", "stages"]

_SHOWN = 12  # rows of a list that is summed up beyond


def stages(
    holders: Sequence[Mapping[str, Any]],
    layers: Mapping[str, Sequence[int]],
    *,
    title: str,
    counted: bool = False,
) -> None:
    """Print one line a pipeline stage; equal stages in the middle of many are one line.

    Args:
        holders: What `verify.overview.holders` returns.
        layers: The layers of each stage or ``stage.chunk``.
        title: What these ranks are.
        counted: Print how many layers there are instead of which.
    """
    if not holders or any("pp" not in h for h in holders):
        return
    texts = {s: str(len(n)) if counted else layers_text(n) for s, n in layers.items()}
    rows = pipeline(holders, texts)
    sizes = {n: len({h[n] for h in holders}) for n in ("tp", "pp", "ep")}
    cut = " x ".join(f"{n} {count}" for n, count in sizes.items() if count > 1) or "one rank"
    table = new_table("stage", "layers", "ranks", "tensors a rank", "bytes a rank", right=("stage", "ranks"))
    for row in _folded(rows):
        table.add_row(
            escape(row["name"]),
            escape(row["layers"]),
            str(row["ranks"]),
            _range(row["tensors"], str),
            _range(row["bytes"], size),
        )
    console = results()
    console.print()
    console.print(f"[bold]{title}[/]: {len(holders)} ({cut})")
    console.print(table)


def _folded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fold neighbours that hold as much into one row where there are many."""
    named = [{**row, "name": str(row["stage"])} for row in rows]
    if len(rows) <= _SHOWN:
        return named
    done: list[list[dict[str, Any]]] = []
    for row in named:
        if done and all(done[-1][-1][k] == row[k] for k in ("ranks", "tensors", "bytes")):
            done[-1].append(row)
        else:
            done.append([row])
    folded = []
    for group in done:
        first, last = group[0], group[-1]
        if len(group) > 1:
            layers = first["layers"]
            if layers != last["layers"]:
                layers += f" ... {last['layers']}"
            first = {**first, "name": f"{first['stage']}-{last['stage']}", "layers": layers}
        folded.append(first)
    return folded


def _range(ends: tuple[int, int], text: Any) -> str:
    low, high = (text(n) for n in ends)
    return low if low == high else f"{low} - {high}"


def slices(found: Sequence[Explained]) -> None:
    """Print for each tensor which rank (or file) holds which part, and who has copies."""
    console = results()
    for one in found:
        console.print()
        console.print(
            f"[bold]{escape(one.name)}[/] [dim]{list(one.shape)} {one.dtype}[/]".replace("[]", "scalar")
        )
        table = new_table("part", "held by", "copies")
        parts: dict[str, tuple[list[str], list[str]]] = {}
        for piece in one.pieces:
            who = list(piece.ranks) or [r.path.rpartition("/")[2] for r in piece.ranges]
            parts.setdefault(str(piece.here), ([], []))[piece.copy].extend(who)
        for part, (own, copies) in list(parts.items())[:_SHOWN]:
            table.add_row(escape(part), escape(_some(own)), escape(_some(copies)))
        console.print(table)
        if len(parts) > _SHOWN:
            console.print(f"[dim]... and {len(parts) - _SHOWN} more parts; --json lists all[/]")


def _some(names: Sequence[str]) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join(found[:2]) + (f" and {len(found) - 2} more" if len(found) > 2 else "")
