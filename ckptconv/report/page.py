"""Put an HTML page together: one file that needs no network, readable in light and dark."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from typing import Final

from ckptconv.errors import printable
from ckptconv.records import dataclass

__all__ = [
    "GENERATOR",
    "ROWS",
    "Cell",
    "apart",
    "code",
    "facts",
    "number",
    "page",
    "section",
    "size",
    "table",
    "text",
    "tiles",
]

_MOST_DIGITS: Final = 17  # tell any two doubles apart
GENERATOR = '<meta name="generator" content="ckptconv">'
"""By which a page of ours is known."""


def text(value: object) -> str:
    """Return text that HTML shows as it is, on one line, without secrets."""
    return escape(printable(str(value)), quote=True)


def code(value: object) -> str:
    """Mark up a name; where a line breaks is up to the browser, its writing direction is its own."""
    return f"<code>{text(value).replace('.', '.<wbr>').replace('/', '/<wbr>')}</code>"


def size(count: float) -> str:
    """Write a number of bytes in decimal units."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def number(value: float | str | None, digits: int = 3) -> str:
    """Write a difference: three digits; what JSON has no number for is a string already."""
    if value is None:
        return ""
    return text(value) if isinstance(value, str) else "0" if value == 0 else f"{value:.{digits}g}"


def apart(values: Sequence[float | str | None]) -> str:
    """Write values with as many digits as it takes for those that differ to look different."""
    different = len(set(values))
    for digits in range(3, _MOST_DIGITS + 1):
        shown = [number(v, digits) for v in values]
        if len(set(shown)) == different:
            break
    return ", ".join(shown) if values else ""


@dataclass(frozen=True, slots=True)
class Cell:
    """Fill one cell of a table.

    Attributes:
        html: What it shows.
        sort: What it is sorted by; its text if None.
        right: Whether it is a number, set at the right.
        kind: A class of the style sheet.
    """

    html: str
    sort: float | None = None
    right: bool = False
    kind: str = ""

    def __str__(self) -> str:
        classes = " ".join(filter(None, ("n" if self.right else "", self.kind)))
        data = "" if self.sort is None else f' data-v="{self.sort!r}"'
        return f"<td{data}" + (f' class="{classes}"' if classes else "") + f">{self.html}</td>"


ROWS: Final = 3000
"""A table's most rows at a time; browsers lay that many out at once."""

_FILTERED: Final = 12  # rows from which on a table has a filter


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, label: str) -> str:
    """Return a table that can be sorted by each column, and filtered if it is long.

    Of very many rows the first are shown; the page holds all, compressed: the filter and sorting find them.
    A column that no row fills is left out.
    """
    filled = [i for i in range(len(heads)) if not rows or any(row[i].html for row in rows)]
    heads, rows = [heads[i] for i in filled], [[row[i] for i in filled] for row in rows]
    right = [bool(rows) and cell.right for cell in (rows[-1] if rows else [Cell("")] * len(heads))]
    head = "".join(
        f'<th scope="col"{" class=n" if r else ""}><button type="button">{text(h)}</button></th>'
        for h, r in zip(heads, right, strict=True)
    )
    made = [f"<tr>{''.join(map(str, row))}</tr>" for row in rows]
    body, rest = "\n".join(made[:ROWS]), made[ROWS:]
    found = count = packed = ""
    if len(rows) > _FILTERED:
        found = (
            f'<input type="search" placeholder="filter {len(rows):,} rows" aria-label="filter {text(label)}">'
        )
        shown = min(ROWS, len(rows))
        count = f'<p class="dim count" role="status">{shown:,} of {len(rows):,} shown</p>'
    if rest:
        data = b64encode(gzip.compress("\n".join(rest).encode(), mtime=0)).decode()
        packed = f'<template class="rest" data-rows="{len(rows)}">{data}</template>'
    return (
        f'<div class="table">{found}{count}<div class="scroll">'
        f'<table class="sortable" aria-label="{text(label)}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{packed}</div>"
    )


def section(title: str, *parts: str, note: str = "") -> str:
    """Return a titled part of the page; empty if there is nothing in it."""
    if not any(parts):
        return ""
    said = f'<p class="dim">{text(note)}</p>' if note else ""
    return f"<section><h2>{text(title)}</h2>{said}{''.join(parts)}</section>"


def facts(found: Iterable[tuple[str, str]]) -> str:
    """Return a list of names and their values, which are HTML; empty values are left out."""
    rows = "".join(f"<dt>{text(k)}</dt><dd>{v}</dd>" for k, v in found if v)
    return f"<dl>{rows}</dl>"


def tiles(found: Iterable[tuple[str, str, str]]) -> str:
    """Return large figures: what, how much, and a class (``good``, ``bad``, ``mild`` or empty)."""
    made = "".join(f'<li class="{k}"><b>{text(value)}</b>{text(what)}</li>' for what, value, k in found)
    return f'<ul class="tiles">{made}</ul>'


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """Return the page.

    Args:
        title: Plain text.
        lead: HTML below the title.
        parts: HTML of the sections.
    """
    digest = b64encode(sha256(_SCRIPT.encode()).digest()).decode()
    rules = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{rules}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{GENERATOR}
<title>{text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><p class="brand">ckptconv</p><h1>{text(title)}</h1>{lead}</header>
<main>{"".join(parts)}</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


_STYLE = """
:root{--bg:#f7f8fa;--card:#fff;--ink:#1b2330;--dim:#5c6675;--line:#dfe3ea;--accent:#2d5bd7;--cold:#cdd8ee;
--hot:#d1350f;
--good:#1a7f4b;--bad:#c02a1d;--mild:#9a6700;--bar:#7c9cf0;--cell:#3563d8;--none:#eef0f4}
@media screen and (prefers-color-scheme:dark){:root{--bg:#12161d;--card:#1a2029;--ink:#e6eaf1;--dim:#9aa5b5;
--line:#2d3643;
--accent:#86a8ff;--cold:#34435f;--hot:#ff7a4d;--good:#5bd092;--bad:#ff8577;--mild:#e3b341;--bar:#4767b8;
--cell:#7fa0ff;--none:#222a35}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main{max-width:1180px;margin:0 auto;padding:0 24px}
header{padding-top:28px}
.brand{margin:0;color:var(--accent);font-weight:600;letter-spacing:.04em;font-size:13px}
h1{margin:2px 0 10px;font-size:26px;line-height:1.2;overflow-wrap:anywhere;unicode-bidi:isolate}
h2{font-size:17px;margin:0 0 10px}
h3{font-size:14px;margin:16px 0 6px;color:var(--dim);font-weight:600}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px;
margin:18px 0}
code{font:13px/1.4 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
overflow-wrap:anywhere;unicode-bidi:isolate}
.dim{color:var(--dim);margin:0 0 10px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:0}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.tiles{display:flex;flex-wrap:wrap;gap:12px;list-style:none;margin:16px 0 0;padding:0}
.tiles li{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:10px 18px;
color:var(--dim);min-width:110px}
.tiles b{display:block;font-size:24px;line-height:1.25;color:var(--ink);font-variant-numeric:tabular-nums}
.tiles .good b{color:var(--good)}.tiles .bad b{color:var(--bad)}.tiles .mild b{color:var(--mild)}
.scroll{overflow:auto;max-height:640px;scrollbar-gutter:stable}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
.n,th.n{text-align:right;white-space:nowrap}.s{white-space:nowrap}
.sortable td:first-child{min-width:19em}.sortable td:has(.bar){width:34%;vertical-align:middle}
td.where{min-width:24em}
thead th{position:sticky;top:0;background:var(--card);z-index:1;white-space:nowrap}
th button{all:unset;cursor:pointer;color:var(--dim);font-weight:600;font-size:13px}
th button:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:3px}
th button::after{content:"";display:inline-block;width:1.1em;text-align:center}
th.n button{position:relative}th.n button::after{position:absolute;left:100%}
th[aria-sort=ascending] button::after{content:"\\2191"}
th[aria-sort=descending] button::after{content:"\\2193"}
input{font:inherit;width:100%;max-width:340px;padding:6px 10px;margin:0 0 10px;
border:1px solid var(--line);border-radius:8px;
background:var(--bg);color:inherit}
.bad{color:var(--bad)}.good{color:var(--good)}.mild{color:var(--mild)}
.bar{display:block;height:12px;border-radius:3px;background:var(--bar);min-width:2px}
table.map{width:auto;border-collapse:separate;border-spacing:2px}
.map th,.map td{border:0;padding:0;font-weight:400;font-size:12px}
.map thead td{background:none}
.map th{vertical-align:middle;color:var(--dim);padding:0 8px 0 0;white-space:nowrap;background:none;
position:static;text-align:right}
.map thead th{padding:0;text-align:center;min-width:22px}
.map.ranks thead th{padding:0 8px}
.map tbody th{position:sticky;left:0;background:var(--card);text-align:left}
.map td{min-width:22px;height:22px;border-radius:4px;text-align:center;vertical-align:middle;
background:repeating-linear-gradient(135deg,transparent 0 4px,var(--line) 4px 5px)}
.map td.h{--h:0;background:color-mix(in oklab,var(--hot) calc(var(--h)*1%),var(--cold))}
.map td.w{background:color-mix(in oklab,var(--cell) calc(var(--h)*1%),var(--none))}
.map td.w{padding:4px 8px}.map td.on{color:var(--card)}
.map tbody th code{white-space:nowrap;overflow-wrap:normal}
.map.tiny td.w,.map.tiny tbody td{min-width:18px;height:18px;padding:0;border-radius:2px}
.map.small tbody td{min-width:11px;height:16px;border-radius:2px;font-size:10px;line-height:1}
.map.tiny thead th,.map.small thead th{padding:0;min-width:0;max-width:11px;overflow:visible;text-align:left}
.map.tiny thead th{max-width:18px}
.map thead th[scope=row]{text-align:left;max-width:none}
.map.tiny,.map.small{border-spacing:1px 2px}
.map td.mark{background:none;border:1px dashed var(--bad);color:var(--bad);font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;align-items:center;color:var(--dim);font-size:13px;
margin:12px 0 0}
.legend i{display:inline-block;width:14px;height:14px;border-radius:3px;vertical-align:-2px;
margin-right:6px;background:var(--none)}
.legend .ramp{width:90px;background:linear-gradient(90deg in oklab,var(--cold),var(--hot))}
.legend .bytes{background:linear-gradient(90deg in oklab,var(--none),var(--cell))}
.legend .absent{background:repeating-linear-gradient(135deg,transparent 0 4px,var(--line) 4px 5px)}
.legend .equal{background:var(--cold)}
.legend .dash{background:none;border:1px dashed var(--bad)}
svg{display:block;max-width:100%;height:auto}
svg text{fill:var(--dim);font-size:12px;font-family:inherit}svg rect.l{fill:var(--bar)}
svg rect.b{fill:var(--none)}
.note{border-left:3px solid var(--line);padding:2px 0 2px 12px;margin:6px 0;overflow-wrap:anywhere}
.note.warning,.note.guess{border-color:var(--mild)}
@media (max-width:640px){header{padding:16px 12px 0}main{padding:0 12px}section{padding:14px 12px}
.sortable td:first-child{min-width:13em}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:6px}}
.count{font-size:13px}
@media print{:root{--bg:#fff}body{font-size:12px}code{font-size:10px}header,main{padding:0}
.sortable td:first-child{min-width:17em}td.where{min-width:14em}th,td{padding-right:8px}
section{break-inside:avoid}section:has(.sortable){break-inside:auto}h2,h3{break-after:avoid}
tr{break-inside:avoid}thead th{position:static}
.map.small,.map.tiny{width:100%;table-layout:fixed}.map thead th:first-child{width:16em}
.map td{overflow:hidden}
.scroll{max-height:none;overflow:visible}input{display:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}.map td.h::after{content:"="}
.map td.h[style]::after{content:"\\2022"}}
"""

_SCRIPT = """
const most = MOST;
const unpacked = async template => {
  const bytes = Uint8Array.from(atob(template.content.textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const made = document.createElement("template");
  made.innerHTML = await new Response(stream).text();
  return [...made.content.children];
};
for (const part of document.querySelectorAll("div.table")) {
  const body = part.querySelector("tbody"), heads = [...part.querySelectorAll("thead th")];
  const filter = part.querySelector("input"), count = part.querySelector(".count");
  let rest = part.querySelector("template.rest"), rows = [...body.rows];
  const total = rest ? +rest.dataset.rows : rows.length, texts = new WeakMap();
  const words = row => {
    if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
    return texts.get(row);
  };
  const value = (row, i) => {
    const cell = row.cells[i];
    return "v" in cell.dataset ? +cell.dataset.v : cell.textContent;
  };
  const show = () => {
    const wanted = filter ? filter.value.toLowerCase() : "";
    const found = wanted ? rows.filter(row => words(row).includes(wanted)) : rows;
    const shown = found.slice(0, most), n = x => x.toLocaleString("en");
    body.replaceChildren(...shown);
    if (count) count.textContent = `${n(shown.length)} of ${n(total)} shown` +
      (found.length > shown.length && wanted ? `, ${n(found.length)} match` : "");
  };
  const all = async () => {
    if (!rest) return;
    const packed = rest;
    rest = null;
    // In an old browser what is shown is searched.
    try { rows.push(...await unpacked(packed)); } catch (e) { }
  };
  heads.forEach((head, i) => head.firstChild.addEventListener("click", async () => {
    await all();
    const up = head.getAttribute("aria-sort") === "descending";
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const order = (a, b) => {
      const x = value(a, i), y = value(b, i);
      if (typeof x === "number" && typeof y === "number") return x - y;
      return String(x).localeCompare(String(y), "en", {numeric: true});
    };
    rows.sort((a, b) => up ? order(a, b) : order(b, a));
    show();
  }));
  if (filter) filter.addEventListener("input", async () => { await all(); show(); });
}
""".replace("MOST", str(ROWS))
