"""Write reports on a checkpoint, a comparison or a verification as pages for any browser, offline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import OutputError
from ckptconv.verify.charts import grid, heat, kinds, relative_of, shape_text, stages
from ckptconv.verify.page import Cell, code, facts, number, page, section, size, table, text, tiles

__all__ = ["diff_report", "inspect_report", "verify_report", "write_report"]

Data = Mapping[str, Any]
_ROWS = 3000  # a table's most rows; browsers sort that many at once


def write_report(path: Path, content: str) -> None:
    """Write a page.

    Raises:
        OutputError: if it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(content, encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        raise OutputError(
            f"the report cannot be written: {e.strerror or e}",
            where=path,
            hint="name a file in a folder that is there",
        ) from e


def inspect_report(data: Data) -> str:
    """Return the page of a checkpoint.

    Args:
        data: What ``inspect --json`` prints.
    """
    layout = "  ".join(f"{k} {v}" for k, v in data["layout"].items())
    lead = facts(
        [
            ("producer", text(" ".join([data["producer"], *map(str, data["versions"].values())]))),
            ("format", text(data["format"])),
            ("layout", text(layout)),
            ("step", text(data["iteration"]) if data["iteration"] is not None else ""),
            ("read from", code(data["data"])),
            ("tied", ", ".join(f"{code(a)} = {code(b)}" for a, b in data["aliases"].items())),
        ]
    )
    dtypes = ", ".join(f"{n} {d}" for d, n in data["dtypes"].items())
    lead += tiles(
        [
            ("parameters", _short(data["parameters"]), ""),
            (f"tensors ({dtypes})", f"{sum(data['dtypes'].values()):,}", ""),
            ("of weights", size(data["bytes"]), ""),
            ("ranks" if _ranked(data) else "files", f"{len(data['holders']):,}", ""),
        ]
    )
    tensors = sorted(data["tensors"], key=lambda t: -_nbytes(t))
    rows = [
        (
            Cell(code(t["name"])),
            Cell(shape_text(t["shape"])),
            Cell(text(t["dtype"])),
            Cell(size(_nbytes(t)), _nbytes(t), right=True),
        )
        for t in tensors[:_ROWS]
    ]
    parts = [
        section("Who holds what", grid(data["holders"]) if _ranked(data) else _files(data["holders"])),
        section("Layers by stage", stages(data["stages"])),
        section("Sizes by kind of tensor", kinds(data["kinds"])),
        section(
            "Tensors",
            table(("name", "shape", "dtype", "size"), rows, label="tensors", more=_more(len(tensors))),
        ),
        _notes(data["notes"]),
    ]
    return page(f"Checkpoint {Path(data['root']).name}", lead, parts)


def diff_report(data: Data) -> str:
    """Return the page of a comparison.

    Args:
        data: What `verify.outcome.Diff.to_dict` returns.
    """
    counts = data["counts"]
    lead = facts(
        [
            ("A", code(data["a"])),
            ("B", code(data["b"])),
            ("tolerance", text(f"|a - b| <= {data['atol']:g} + {data['rtol']:g} * |b|")),
            ("compared", text(f"{size(data['bytes'])} in {data['seconds']:.3g} s")),
        ]
    )
    lead += tiles(
        [
            ("equal", f"{counts['equal']:,}", "good" if data["ok"] else ""),
            *([("within tolerance", f"{counts['within']:,}", "mild")] if counts["within"] else []),
            ("differ", f"{counts['differs']:,}", "bad" if counts["differs"] else ""),
            *([("other shape", f"{counts['shape']:,}", "bad")] if counts["shape"] else []),
            *([("other dtype", f"{counts['dtype']:,}", "mild")] if counts["dtype"] else []),
            ("only in A", f"{counts['only_a']:,}", "bad" if counts["only_a"] else ""),
            ("only in B", f"{counts['only_b']:,}", "bad" if counts["only_b"] else ""),
        ]
    )
    unequal = [t for t in data["tensors"] if t["verdict"] != "equal" or t["dtype"] != t["dtype_b"]]
    alone = [(side, t) for side in ("A", "B") for t in data[f"only_{side.lower()}"]]
    heads = ("tensor", "outcome", "relative", "largest", "mean", "differing", "where", "A, B there")
    shown = unequal[:_ROWS]
    parts = [
        section("Where they differ", heat(data), note="Relative difference of each tensor, layer by layer."),
        section(
            "Tensors that differ",
            table(
                heads, [_differing(t) for t in shown], label="tensors that differ", more=_more(len(unequal))
            )
            if unequal
            else "",
            note="Relative: norm of the difference over the norm of B's values.",
        ),
        section(
            "Only on one side",
            table(
                ("tensor", "side", "shape", "dtype"),
                [
                    (Cell(code(t["name"])), Cell(side), Cell(shape_text(t["shape"])), Cell(text(t["dtype"])))
                    for side, t in alone[:_ROWS]
                ],
                label="tensors of one side",
                more=_more(len(alone)),
            )
            if alone
            else "",
        ),
        _notes(data["notes"]),
    ]
    return page("Equal" if data["ok"] else "Differences", lead, parts)


def verify_report(data: Data) -> str:
    """Return the page of a verification.

    Args:
        data: What `verify.result.Result.to_dict` returns.
    """
    proof, found = data["proof"], data["mismatches"]
    lead = facts(
        [
            ("source", code(data["source"])),
            ("output", code(data["out"]) if data["out"] else ""),
            ("plan", code(data["plan"])),
            ("casts", text("; ".join(data["casts"]))),
            ("time", text(f"{data['seconds']:.3g} s")),
        ]
    )
    lead += tiles(
        [
            ("mismatches", f"{len(found):,}", "bad" if found else "good"),
            ("tensors compared", f"{data['tensors']:,}", ""),
            ("compared", size(data["bytes"]), ""),
            ("copies compared", f"{data['replicas']:,}", ""),
        ]
    )
    rows = [
        (
            Cell(code(m["tensor"])),
            Cell(text(m["kind"]), kind="bad"),
            Cell(text(m["text"])),
            Cell(_index(m["index"])),
            Cell(f"{m['count']:,}", m["count"], right=True),
            Cell(number(m["largest"]), _sortable(m["largest"]), right=True),
            Cell(
                "<br>".join(
                    _place(m[side], word) for side, word in (("output", "in"), ("source", "from")) if m[side]
                )
            ),
        )
        for m in found[:_ROWS]
    ]
    heads = ("tensor", "kind", "what", "first", "elements", "largest", "where")
    yes = {True: '<span class="good">yes</span>', False: '<span class="bad">no</span>'}
    parts = [
        section(
            "Proof from metadata",
            facts(
                [
                    ("boxes", f"{proof['pairs']:,}"),
                    ("every element covered once", yes[bool(proof["complete"])]),
                    ("there and back is the identity", yes[bool(proof["invertible"])]),
                    ("without an inverse, computed again", text("; ".join(proof["one_way"]))),
                    ("time", text(f"{proof['seconds']:.3g} s")),
                ]
            ),
        ),
        section(
            "What differs", table(heads, rows, label="mismatches", more=_more(len(found))) if found else ""
        ),
        section("Logits", _logits(data["logits"])),
        _notes(data["notes"]),
    ]
    return page("Verified" if data["ok"] else "Not equal to the source", lead, parts)


def _ranked(data: Data) -> bool:
    return bool(data["holders"]) and all("pp" in h for h in data["holders"])


def _files(holders: Sequence[Data]) -> str:
    rows = [
        (
            Cell(code(h["name"])),
            Cell(f"{h['tensors']:,}", h["tensors"], right=True),
            Cell(size(h["bytes"]), h["bytes"], right=True),
        )
        for h in sorted(holders, key=lambda h: -h["bytes"])[:_ROWS]
    ]
    return table(("file", "tensors", "size"), rows, label="files", more=_more(len(holders))) if rows else ""


def _differing(t: Data) -> tuple[Cell, ...]:
    kind = {"differs": "bad", "shape": "bad", "within": "mild"}.get(t["verdict"], "")
    types = text(t["dtype"]) if t["dtype"] == t["dtype_b"] else f"{text(t['dtype'])}, {text(t['dtype_b'])}"
    name = Cell(f'{code(t["name"])}<br><span class="dim">{shape_text(t["shape"])} {types}</span>')
    if t["verdict"] == "shape":
        shapes = f"shape {shape_text(t['shape'])}, {shape_text(t['shape_b'])}"
        return (name, Cell(shapes, kind=kind), *[Cell("", -1.0, right=True)] * 4, Cell(""), Cell(""))
    outcome: str = "within tolerance" if t["verdict"] == "within" else t["verdict"]
    if t["conflicts"]:
        outcome += ", copies disagree"
    if t["unbounded"]:
        outcome += f", {t['unbounded']:,} NaN or infinite"
    share = 100 * t["differing"] / max(t["elements"], 1)
    return (
        name,
        Cell(text(outcome), kind=kind),
        Cell(number(t["relative"]), relative_of(t), right=True),
        Cell(number(t["largest"]), _sortable(t["largest"]), right=True),
        Cell(number(t["mean"]), _sortable(t["mean"]), right=True),
        Cell(f"{t['differing']:,} ({share:.3g}%)", t["differing"], right=True),
        Cell(_index(t["index"])),
        Cell(", ".join(number(v) for v in t["values"] or ())),
    )


def _notes(found: Iterable[Data]) -> str:
    made = "".join(
        f'<p class="note {text(n["level"])}"><b>{text(n["level"])}</b> {text(n["text"])}</p>' for n in found
    )
    return section("Notes", made)


def _logits(data: Data | None) -> str:
    if data is None:
        return ""
    return facts((k, text(v)) for k, v in data.items() if v is not None)


def _place(place: Data, word: str) -> str:
    return f"{word} {code(place['file'])} at byte {place['byte']:,} ({code(place['tensor'])})"


def _index(index: Sequence[int] | None) -> str:
    return "" if index is None else f"[{', '.join(map(str, index))}]"


def _sortable(value: float | str | None) -> float:
    try:
        return min(float(value), 1e300) if value is not None else -1.0
    except ValueError:
        return 1e300


def _nbytes(tensor: Data) -> int:
    return prod(tensor["shape"]) * dtype_named(tensor["dtype"]).itemsize


def _more(count: int) -> str:
    return f"... and {count - _ROWS:,} more; --json lists all" if count > _ROWS else ""


def _short(count: float) -> str:
    for unit in ("", "K", "M", "B"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T"
