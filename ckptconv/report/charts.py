"""Draw the pictures of reports: ranks, stages, sizes, and a heat map of differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log10
from typing import Any

from ckptconv.report.page import Cell, code, number, size, table, text
from ckptconv.verify.overview import kind_of, layers_text

__all__ = ["grid", "heat", "kinds", "relative_of", "shape_text", "stages", "wrong"]

Data = Mapping[str, Any]
_KINDS_SHOWN = 400  # rows of a map
_FLOOR, _CEILING = -8.0, 0.0  # powers of ten of a relative difference, coldest and hottest


_COLUMNS = 48  # of the grid of ranks; more are put together


def grid(holders: Sequence[Data]) -> str:
    """Return the grid of ranks: a row for each stage, a column for one or some tensor and expert ranks."""
    columns = sorted({(h["ep"], h["tp"]) for h in holders})
    experts = len({ep for ep, _ in columns}) > 1
    groups = _grouped(columns)
    most = max(h["bytes"] for h in holders) or 1
    at = {(h["pp"], h["ep"], h["tp"]): h for h in holders}
    wide = len(groups) > 12
    every = max(1, -(-len(groups) // 16)) if wide else 1
    heads = "".join(
        f'<th scope="col">{_columns_text(g, experts, short=wide) if i % every == 0 else ""}</th>'
        for i, g in enumerate(groups)
    )
    rows = []
    for pp in sorted({h["pp"] for h in holders}):
        cells = "".join(
            _rank_cell([h for c in g if (h := at.get((pp, *c))) is not None], g, most, experts, wide=wide)
            for g in groups
        )
        rows.append(f'<tr><th scope="row">stage {pp}</th>{cells}</tr>')
    together = f"; a cell is {len(groups[0]):,} ranks" if len(groups) < len(columns) else ""
    what = "expert and tensor parallel" if experts else "tensor parallel"
    return (
        f'<div class="scroll"><table class="map {"tiny" if wide else "ranks"}" '
        'aria-label="bytes a rank holds">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="legend"><span><i class="ramp bytes"></i>bytes a rank holds, 0 to {size(most)}</span>'
        f"<span>{len(columns):,} ranks a stage ({what}){together}</span>"
        f"<span>{_copies_text(holders)}</span></p>"
    )


def _grouped(columns: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Put columns together: by expert rank if they are too many, and those further if need be."""
    if len(columns) <= _COLUMNS:
        return [[c] for c in columns]
    by_ep: dict[int, list[tuple[int, int]]] = {}
    for c in columns:
        by_ep.setdefault(c[0], []).append(c)
    held = list(by_ep.values()) if len(by_ep) > 1 else [[c] for c in columns]
    step = -(-len(held) // _COLUMNS)
    return [[c for g in held[i : i + step] for c in g] for i in range(0, len(held), step)]


def _columns_text(group: Sequence[tuple[int, int]], experts: bool, *, short: bool = False) -> str:
    (ep, tp), (last_ep, last_tp) = group[0], group[-1]
    if not experts:
        return f"tp {tp}" if tp == last_tp else f"tp {tp}" if short else f"tp {tp}-{last_tp}"
    if len(group) == 1:
        return f"ep {ep}" if short and tp == 0 else "" if short else f"ep {ep}, tp {tp}"
    return f"ep {ep}" if ep == last_ep or short else f"ep {ep}-{last_ep}"


def _rank_cell(
    held: Sequence[Data], group: Sequence[tuple[int, int]], most: int, experts: bool, *, wide: bool
) -> str:
    if not held:
        return '<td title="no such rank"></td>'
    low, high = min(h["bytes"] for h in held), max(h["bytes"] for h in held)
    share = round(100 * high / most)
    if len(held) == 1:
        copies = f", {size(held[0]['copies'])} of them copies" if held[0]["copies"] else ""
        said = f"{held[0]['name']}: {held[0]['tensors']:,} tensors, {size(high)}{copies}"
    else:
        each = size(high) if low == high else f"{size(low)} to {size(high)}"
        said = f"{_columns_text(group, experts)}: {len(held):,} ranks, {each} each"
    shown = "" if wide else size(high)
    return f'<td class="w{" on" if share > 45 else ""}" style="--h:{share}" title="{text(said)}">{shown}</td>'


def _copies_text(holders: Sequence[Data]) -> str:
    copies, total = sum(h["copies"] for h in holders), sum(h["bytes"] for h in holders)
    return f"{size(copies)} of {size(total)} repeat what another rank holds" if copies else ""


def stages(found: Mapping[str, Sequence[int]]) -> str:
    """Draw the layers of each stage on one line each."""
    if not found:
        return ""
    count = max((max(layers, default=-1) for layers in found.values()), default=-1) + 1
    unit, left, row = min(26.0, 900 / max(count, 1)), 130, 24
    chunked = any("." in s for s in found)
    bars, end = [], left + count * unit
    for i, (stage, layers) in enumerate(found.items()):
        pp, _, chunk = stage.partition(".")
        label = f"stage {pp}" + (f", chunk {chunk or 0}" if chunked else "")
        y = i * row
        said = f"{label}: {'layers ' + layers_text(layers) if layers else 'no layers'}"
        bars.append(f'<text x="0" y="{y + 15}">{text(label)}</text>')
        bars.append(f'<rect class="b" x="{left}" y="{y + 2}" width="{count * unit:.1f}" height="18" rx="3"/>')
        cells = "".join(
            f'<rect class="l" x="{left + n * unit + 0.5:.1f}" y="{y + 2}" '
            f'width="{max(unit - 1, 0.5):.1f}" height="18" rx="2"/>'
            for n in layers
        )
        bars.append(f"<g><title>{text(said)}</title>{cells}</g>")
        bars.append(f'<text x="{end + 10:.1f}" y="{y + 15}">{text(layers_text(layers) or "none")}</text>')
    width, height = left + count * unit + 120, len(found) * row
    return (
        f'<svg role="img" aria-label="layers of each pipeline stage" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}">{"".join(bars)}</svg>'
    )


def kinds(found: Sequence[Data]) -> str:
    """Return a table of kinds of tensors with a bar for each one's size."""
    most = max((k["bytes"] for k in found), default=0) or 1
    rows = [
        (
            Cell(code(k["kind"])),
            Cell(f"{k['tensors']:,}", k["tensors"], right=True),
            Cell(_each(k, "pieces"), k["pieces"], right=True),
            Cell(_each(k, "copies"), k["copies"], right=True),
            Cell(size(k["bytes"]), k["bytes"], right=True),
            Cell(f'<span class="bar" style="width:{100 * k["bytes"] / most:.2f}%"></span>', k["bytes"]),
        )
        for k in found
    ]
    return table(_KINDS, rows, label="kinds of tensors") if rows else ""


_KINDS = ("kind", "tensors", "pieces each", "copies each", "size", "share")


def _each(kind: Data, what: str) -> str:
    """Write how many stored tensors one tensor of a kind is made of, or repeated in."""
    mean = kind[what] / max(kind["tensors"], 1)
    return f"{mean:,.0f}" if mean == int(mean) else f"{mean:,.1f}"


_WORST = {"equal": 0, "within": 1, "differs": 2, "only": 3, "shape": 3}


Spot = tuple[tuple[int, float], str, str, str]
"""How bad it is, a mark, words, and a verdict."""


def heat(data: Data) -> str:
    """Draw relative differences over layers and kinds; experts of a layer are one cell, the worst counts."""
    found = [(t["name"], t["verdict"], relative_of(t), _said(t)) for t in data["tensors"]]
    for side in ("a", "b"):
        found += [(t["name"], "only", 0.0, f"only in {side.upper()}") for t in data[f"only_{side}"]]
    spots = (
        (name, ((_WORST[v], relative), {"shape": "≠", "only": said[-1]}.get(v, ""), f"{name}: {said}", v))
        for name, v, relative, said in found
    )
    legend = (
        f'<span><i class="ramp"></i>relative difference 1e{_FLOOR:.0f} to 1</span>'
        '<span><i class="dash"></i>A or B: only there; ≠: other shape</span>'
    )
    return _maps(spots, legend, "differences")


def wrong(names: Sequence[str], mismatches: Sequence[Data]) -> str:
    """Draw which tensors of a verified model differ, over layers and kinds."""
    spots: list[tuple[str, Spot]] = [(n, ((0, 0.0), "", f"{n}: equal", "equal")) for n in names]
    marks = {"missing": "-", "unexpected": "+", "shape": "≠", "dtype": "T"}
    for m in mismatches:
        if m["kind"] not in ("value", "replica", *marks):
            continue
        name = (m["of"] or m["tensor"]).partition(", ")[0]
        said = f"{m['tensor']}: {m['text']}"
        worst = (3 if m["kind"] in marks else 2, float(m["count"]))
        spots.append((name, (worst, marks.get(m["kind"], ""), said, "differs")))
    legend = (
        '<span><i style="background:var(--hot)"></i>differs</span>'
        '<span><i class="dash"></i>-: missing, +: unexpected, ≠: other shape, T: other type</span>'
    )
    return _maps(spots, legend, "what differs")


def _maps(found: Iterable[tuple[str, Spot]], legend: str, label: str) -> str:
    """Draw one map of the layers and one of the rest; what is worst comes first."""
    cells: dict[str, dict[int, Spot]] = {}
    rest: dict[str, dict[int, Spot]] = {}
    for name, spot in found:
        layer, kind = kind_of(name)
        here = (cells if layer is not None else rest).setdefault(kind, {})
        at = layer or 0
        if at not in here or here[at][0] < spot[0]:
            here[at] = spot
    layers = sorted({n for row in cells.values() for n in row})
    made = ""
    if layers:
        every = 1 if len(layers) <= 32 else 5 if len(layers) <= 100 else 10
        heads = "".join(f'<th scope="col">{n if n % every == 0 else ""}</th>' for n in layers)
        head = f'<tr><th scope="row">layer</th>{heads}</tr>'
        made += _map(cells, layers, head, f"{label} by layer and kind of tensor")
    if rest:
        made += ("<h3>Outside of the layers</h3>" if layers else "") + _map(rest, [0], "", label)
    always = '<span><i class="absent"></i>nothing there</span><span><i class="equal"></i>equal</span>'
    return f'{made}<p class="legend">{always}{legend}</p>' if made else ""


def _map(
    cells: Mapping[str, Mapping[int, Spot]],
    columns: Sequence[int],
    head: str,
    label: str,
) -> str:
    rows = []
    worst = sorted(cells.items(), key=lambda c: max(s[0] for s in c[1].values()), reverse=True)
    for kind, here in worst[:_KINDS_SHOWN]:
        row = "".join(_spot(here.get(n)) for n in columns)
        rows.append(f'<tr><th scope="row">{code(kind)}</th>{row}</tr>')
    if len(worst) > _KINDS_SHOWN:
        rows.append(f'<tr><th scope="row">... and {len(worst) - _KINDS_SHOWN:,} more kinds</th></tr>')
    small = " small" if len(columns) > 32 else ""
    return (
        f'<div class="scroll"><table class="map{small}" aria-label="{text(label)}"><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _spot(cell: Spot | None) -> str:
    if cell is None:
        return "<td></td>"
    (_, relative), mark, said, verdict = cell
    if mark:
        return f'<td class="mark" title="{text(said)}">{text(mark)}</td>'
    heat = 0 if verdict == "equal" else max(12, round(100 * _heat_of(relative)))
    if heat == 0:
        return f'<td class="h" title="{text(said)}"></td>'
    return f'<td class="h" style="--h:{heat}" title="{text(said)}"></td>'


def _heat_of(relative: float) -> float:
    if relative <= 0:
        return 0.0
    return min(1.0, max(0.0, (log10(relative) - _FLOOR) / (_CEILING - _FLOOR)))


def relative_of(t: Data) -> float:
    """Return a tensor's relative difference to sort by; NaN and infinity are the largest."""
    if t["verdict"] == "shape":
        return 0.0
    value = float(t["relative"])
    return 1e300 if t["unbounded"] or value != value else min(value, 1e300)


def _said(t: Data) -> str:
    if t["verdict"] == "shape":
        return f"{shape_text(t['shape'])} in A, {shape_text(t['shape_b'])} in B"
    if t["verdict"] == "equal":
        return "equal"
    share = f"{t['differing']:,} of {t['elements']:,}"
    return f"relative {number(t['relative'])}, largest {number(t['largest'])}, {share}"


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape."""
    return " x ".join(map(str, shape)) or "scalar"
