"""Write reports on a checkpoint, a comparison or a verification as pages for any browser, offline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import OutputError, without_secrets
from ckptconv.places.regular import read_head
from ckptconv.report.charts import heat, relative_of, shape_text, wrong
from ckptconv.report.page import (
    GENERATOR,
    Cell,
    apart,
    code,
    facts,
    number,
    page,
    section,
    size,
    table,
    text,
    tiles,
)
from ckptconv.report.sections import is_ranked, parts_of

__all__ = ["diff_report", "inspect_report", "verify_report", "write_report"]

Data = Mapping[str, Any]

_NAME: Final = "name a file in a folder that is there"


def write_report(path: Path, content: str) -> None:
    """Write a page; what it replaces, if there is something, must be one as well.

    Raises:
        OutputError: if it cannot be written, or another file has the name.
    """
    try:
        if path.is_dir():
            raise OutputError("the report cannot be written: it is a folder", where=path, hint=_NAME)
        if os.path.lexists(path) and (path.is_symlink() or not _is_report(path)):
            hint = "name a file that is not there, or a report to replace"
            raise OutputError("not overwritten: it is no report of ckptconv", where=path, hint=hint)
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(part, flags, 0o666), "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(without_secrets(content))
        os.replace(part, path)
    except OSError as e:
        raise OutputError(
            f"the report cannot be written: {e.strerror or e}",
            where=path,
            hint=_NAME,
        ) from e


def _is_report(path: Path) -> bool:
    """Whether a file is a page that `write_report` wrote."""
    return path.is_file() and GENERATOR.encode() in read_head(path, 4096)


def inspect_report(data: Data) -> str:
    """Return the page of a checkpoint.

    Args:
        data: What ``inspect --json`` prints.
    """
    layout = _layout(data)
    lead = facts(
        [
            ("producer", text(" ".join([data["producer"], *map(str, data["versions"].values())]))),
            ("format", text(data["format"])),
            ("layout", text(layout)),
            ("step", text(data["step"]) if data["step"] is not None else ""),
            ("read from", code(data["data"])),
            ("tied", ", ".join(f"{code(a)} = {code(b)}" for a, b in data["aliases"].items())),
        ]
    )
    dtypes = ", ".join(f"{n:,} {d}" for d, n in data["dtypes"].items())
    lead += tiles(
        [
            ("parameters", _short(data["parameters"]), ""),
            (f"tensors ({dtypes})", f"{sum(data['dtypes'].values()):,}", ""),
            ("of weights", size(data["bytes"]), ""),
            ("ranks" if is_ranked(data) else "files", f"{len(data['holders']):,}", ""),
        ]
    )
    tensors = sorted(data["tensors"], key=lambda t: -_nbytes(t))
    rows = [
        (
            Cell(code(t["name"])),
            Cell(shape_text(t["shape"]), kind="s"),
            Cell(text(t["dtype"])),
            Cell(size(_nbytes(t)), _nbytes(t), right=True),
        )
        for t in tensors
    ]
    parts = [
        *parts_of(data),
        section(
            "Tensors",
            table(("name", "shape", "dtype", "size"), rows, label="tensors"),
        ),
        _notes(data["notes"]),
    ]
    return page(f"Checkpoint {Path(data['root']).name}", lead, parts)


def diff_report(data: Data, a: Data | None = None, b: Data | None = None) -> str:
    """Return the page of a comparison.

    Args:
        data: What `verify.outcome.Diff.to_dict` returns.
        a: What ``inspect --json`` prints of the one.
        b: What it prints of the other.
    """
    counts = data["counts"]
    lead = facts(
        [
            ("A", code(data["a"])),
            ("B", code(data["b"])),
            ("A is", _summary(a)),
            ("B is", _summary(b)),
            ("tolerance", text(_tolerance(data))),
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
    parts = [
        section("Where they differ", heat(data), note="Relative difference of each tensor, layer by layer."),
        section(
            "Tensors that differ",
            table(heads, [_differing(t) for t in unequal], label="tensors that differ") if unequal else "",
            note="Relative: norm of the difference over the norm of B's values.",
        ),
        section(
            "Only on one side",
            table(
                ("tensor", "side", "shape", "dtype"),
                [
                    (
                        Cell(code(t["name"])),
                        Cell(side),
                        Cell(shape_text(t["shape"]), kind="s"),
                        Cell(text(t["dtype"])),
                    )
                    for side, t in alone
                ],
                label="tensors of one side",
            )
            if alone
            else "",
        ),
        _notes(data["notes"]),
        *(parts_of(a, "A") if a is not None else []),
        *(parts_of(b, "B") if b is not None else []),
    ]
    return page("Equal" if data["ok"] else "Differences", lead, parts)


def verify_report(
    data: Data, names: Sequence[str] = (), source: Data | None = None, output: Data | None = None
) -> str:
    """Return the page of a verification.

    Args:
        data: What `verify.result.Result.to_dict` returns.
        names: All tensors that were compared.
        source: What ``inspect --json`` prints of the source.
        output: What it prints of the output.
    """
    found = data["mismatches"]
    lead = facts(
        [
            ("source", code(data["source"])),
            ("output", code(data["out"]) if data["out"] else ""),
            ("source is", _summary(source)),
            ("output is", _summary(output)),
            ("plan", code(data["digest"])),
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
    parts = [
        _proof(data["proof"]),
        section("Tensors compared", wrong(names, found)),
        section("What differs", _mismatches(found) if found else ""),
        section("Logits", _logits(data["logits"])),
        _notes(data["notes"]),
        *(parts_of(source, "Source") if source is not None else []),
        *(parts_of(output, "Output") if output is not None else []),
    ]
    return page("Verified" if data["ok"] else "Not equal to the source", lead, parts)


def _proof(proof: Data) -> str:
    """Return what metadata alone proved."""
    yes = {True: '<span class="good">yes</span>', False: '<span class="bad">no</span>'}
    return section(
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
    )


def _mismatches(found: Sequence[Data]) -> str:
    """Return the table of what differs."""
    rows = [
        (
            Cell(code(m["tensor"]) + (f'<br><span class="dim">{code(m["of"])}</span>' if m["of"] else "")),
            Cell(text(m["kind"]), kind="bad"),
            Cell(text(m["text"])),
            Cell(_index(m["index"]), kind="s"),
            Cell(f"{m['count']:,}" if m["count"] else "", m["count"], right=True),
            Cell(number(m["largest"]), _sortable(m["largest"]), right=True),
            Cell(
                "<br>".join(
                    _place(m[side], word, m["tensor"])
                    for side, word in (("output", "in"), ("source", "from"))
                    if m[side]
                ),
                kind="where",
            ),
        )
        for m in found
    ]
    heads = ("tensor", "kind", "what", "first", "elements", "largest", "where")
    return table(heads, rows, label="mismatches")


def _differing(t: Data) -> tuple[Cell, ...]:
    kind = {"differs": "bad", "shape": "bad", "within": "mild"}.get(t["verdict"], "")
    types = text(t["dtype"]) if t["dtype"] == t["dtype_b"] else f"{text(t['dtype'])}, {text(t['dtype_b'])}"
    name = Cell(f'{code(t["name"])}<br><span class="dim">{shape_text(t["shape"])} {types}</span>')
    if t["verdict"] == "shape":
        shapes = f"shape {shape_text(t['shape'])}, {shape_text(t['shape_b'])}"
        return (name, Cell(shapes, kind=f"{kind} s"), *[Cell("", -1.0, right=True)] * 4, Cell(""), Cell(""))
    outcome: str = "within tolerance" if t["verdict"] == "within" else t["verdict"]
    if t["conflicts"]:
        outcome += ", copies disagree"
    if t["unbounded"]:
        outcome += f", {t['unbounded']:,} NaN or infinite"
    share = 100 * t["differing"] / max(t["elements"], 1)
    return (
        name,
        Cell(text(outcome), kind=f"{kind} s".strip()),
        Cell(
            "unbounded" if t["unbounded"] and not t["relative"] else number(t["relative"]),
            relative_of(t),
            right=True,
        ),
        Cell(number(t["largest"]), _sortable(t["largest"]), right=True),
        Cell(number(t["mean"]), _sortable(t["mean"]), right=True),
        Cell(f"{t['differing']:,} ({share:.3g}%)", t["differing"], right=True),
        Cell(_index(t["index"]), kind="s"),
        Cell(apart(t["values"] or ())),
    )


def _summary(data: Data | None) -> str:
    """Say in a line what a checkpoint is."""
    if data is None:
        return ""
    said = [data["producer"], data["format"], _layout(data), f"{_short(data['parameters'])} parameters"]
    return text(", ".join(filter(None, said)))


def _layout(data: Data) -> str:
    return ", ".join(f"{k} {v}" for k, v in data["layout"].items())


def _tolerance(data: Data) -> str:
    if not data["atol"] and not data["rtol"]:
        return "none: values are equal or differ (NaN equals NaN, 0.0 equals -0.0)"
    return f"|a - b| <= {data['atol']:g} + {data['rtol']:g} * |b|"


def _notes(found: Iterable[Data]) -> str:
    made = "".join(
        f'<p class="note {text(n["level"])}"><b>{text(n["level"])}</b> {text(n["text"])}</p>' for n in found
    )
    return section("Notes", made)


def _logits(data: Data | None) -> str:
    if data is None:
        return ""
    return facts((k, text(v)) for k, v in data.items() if v not in (None, "", []))


def _place(place: Data, word: str, tensor: str) -> str:
    """Say where an element lies, and of which stored tensor it is, unless that is ``tensor``."""
    stored = "" if place["tensor"] == tensor else f" ({code(place['tensor'])})"
    return f"{word} {code(place['file'])} at byte {place['byte']:,}{stored}"


def _index(index: Sequence[int] | None) -> str:
    return "" if index is None else f"[{', '.join(map(str, index))}]"


def _sortable(value: float | str | None) -> float:
    try:
        return min(float(value), 1e300) if value is not None else -1.0
    except ValueError:
        return 1e300


def _nbytes(tensor: Data) -> int:
    return prod(tensor["shape"]) * dtype_named(tensor["dtype"]).itemsize


def _short(count: float) -> str:
    for unit in ("", "K", "M", "B"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T"
