"""Draw the pictures of reports: ranks, stages, sizes, and a heat map of differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

from ckptconv.verify.overview import kind_of, layers_text
from ckptconv.verify.page import Cell, code, number, size, table, text

__all__ = ["grid", "heat", "kinds", "relative_of", "shape_text", "stages"]

Data = Mapping[str, Any]
_FLOOR, _CEILING = -8.0, 0.0  # powers of ten of a relative difference, coldest and hottest


def grid(holders: Sequence[Data]) -> str:
    """Return the grid of ranks: a row for each stage, a column for each tensor and expert rank."""
    columns = sorted({(h["ep"], h["tp"]) for h in holders})
    most = max(h["bytes"] for h in holders) or 1
    at = {(h["pp"], h["ep"], h["tp"]): h for h in holders}
    experts = len({ep for ep, _ in columns}) > 1
    wide = len(columns) > 16
    if wide:
        groups = Counter(ep for ep, _ in columns)
        heads = "".join(
            f'<th scope="colgroup" colspan="{n}">{f"ep {ep}" if experts else f"tp 0-{n - 1}"}</th>'
            for ep, n in groups.items()
        )
    else:
        heads = "".join(
            f'<th scope="col">{f"ep {ep}, " if experts else ""}tp {tp}</th>' for ep, tp in columns
        )
    rows = []
    for pp in sorted({h["pp"] for h in holders}):
        cells = []
        for ep, tp in columns:
            held = at.get((pp, ep, tp))
            if held is None:
                cells.append('<td title="no such rank"></td>')
                continue
            share = round(100 * held["bytes"] / most)
            copies = f", {size(held['copies'])} of them copies" if held["copies"] else ""
            label = f"{held['name']}: {held['tensors']} tensors, {size(held['bytes'])}{copies}"
            shown = "" if wide else size(held["bytes"])
            cells.append(
                f'<td class="w{" on" if share > 45 else ""}" style="--h:{share}" '
                f'title="{text(label)}">{shown}</td>'
            )
        rows.append(f'<tr><th scope="row">stage {pp}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="map{" tiny" if wide else ""}" aria-label="bytes a rank holds">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="legend">the fuller the colour, the more bytes, {size(most)} at most; '
        f"{len(columns)} ranks a stage ({'expert and ' if experts else ''}tensor parallel)</p>"
    )


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
            Cell(size(k["bytes"]), k["bytes"], right=True),
            Cell(f'<span class="bar" style="width:{100 * k["bytes"] / most:.2f}%"></span>', k["bytes"]),
        )
        for k in found[:200]
    ]
    return table(("kind", "tensors", "size", "share"), rows, label="kinds of tensors") if rows else ""


_WORST = {"equal": 0, "within": 1, "differs": 2, "only": 3, "shape": 3}


def heat(data: Data) -> str:
    """Draw relative differences over layers and kinds; experts of a layer are one cell, the worst counts."""
    cells: dict[str, dict[int, tuple[tuple[int, float], str, str, str]]] = {}
    rest: dict[str, dict[int, tuple[tuple[int, float], str, str, str]]] = {}
    found = [(t["name"], t["verdict"], relative_of(t), _said(t)) for t in data["tensors"]]
    for side in ("a", "b"):
        found += [(t["name"], "only", 0.0, f"only in {side.upper()}") for t in data[f"only_{side}"]]
    for name, verdict, relative, said in found:
        layer, kind = kind_of(name)
        mark = {"shape": "≠", "only": said[-1]}.get(verdict, "")
        here = (cells if layer is not None else rest).setdefault(kind, {})
        worst = (_WORST[verdict], relative)
        at = layer or 0
        if at not in here or here[at][0] < worst:
            here[at] = worst, mark, f"{name}: {said}", verdict
    layers = sorted({n for row in cells.values() for n in row})
    legend = (
        '<p class="legend"><span><i></i>nothing there</span>'
        '<span><i style="background:var(--cold)"></i>equal</span>'
        f'<span><i class="ramp"></i>relative difference 1e{_FLOOR:.0f} to 1</span>'
        '<span><i class="dash"></i>A or B: only there; ≠: other shape</span></p>'
    )
    made = ""
    if layers:
        every = max(1, -(-len(layers) // 64))
        heads = "".join(f'<th scope="col">{n if i % every == 0 else ""}</th>' for i, n in enumerate(layers))
        made += _map(cells, layers, f"<tr><td></td>{heads}</tr>", "differences by layer and kind of tensor")
    if rest:
        made += ("<h3>Outside of the layers</h3>" if layers else "") + _map(rest, [0], "", "other tensors")
    return made + legend if made else ""


def _map(
    cells: Mapping[str, Mapping[int, tuple[tuple[int, float], str, str, str]]],
    columns: Sequence[int],
    head: str,
    label: str,
) -> str:
    rows = []
    for kind, here in list(cells.items())[:400]:
        row = "".join(_spot(here.get(n)) for n in columns)
        rows.append(f'<tr><th scope="row">{code(kind)}</th>{row}</tr>')
    return (
        f'<div class="scroll"><table class="map" aria-label="{text(label)}"><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _spot(cell: tuple[tuple[int, float], str, str, str] | None) -> str:
    if cell is None:
        return "<td></td>"
    (_, relative), mark, said, verdict = cell
    if mark:
        return f'<td class="mark" title="{text(said)}">{text(mark)}</td>'
    heat = 0 if verdict == "equal" else max(12, round(100 * _heat_of(relative)))
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
