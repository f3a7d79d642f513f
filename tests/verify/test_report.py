"""Reports are one sound page that needs no network and takes names for what they are."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptconv
from ckptconv.api.diff import diff
from ckptconv.api.verify import verify_roundtrip
from ckptconv.cli import render
from ckptconv.report.charts import grid, heat
from ckptconv.report.page import Cell, apart, table
from ckptconv.report.report import diff_report, inspect_report, verify_report, write_report
from megatron_cases import Case
from running import DEMO, fails, succeeds
from running import ckptconv as run_command

LLAMA = Case("llama.tar.xz", "llama/torch_tp1pp2vpp2_te")
HOSTILE = "</td><script>alert(1)</script><img src=x onerror='a'>\"&\u202e\x00"
_VOID = {"meta", "input", "br", "wbr", "rect"}


class Page(HTMLParser):
    """Read a page strictly: every element is closed in its order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def count(self, tag: str, kind: str | None = None) -> int:
        """Count elements, of a class if one is given."""
        found = [a.get("class") or "" for t, a in self.tags if t == tag]
        return sum(kind is None or kind in c.split() for c in found)


def sound(content: str) -> Page:
    """Check what every report promises."""
    page = Page(content)
    assert page.count("script") == 1 and page.count("style") == 1
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes), tag
    assert "url(" not in content and "@import" not in content and "http://" not in content
    assert "prefers-color-scheme:dark" in content and "default-src 'none'" in content
    return page


def test_the_script_may_run_under_the_pages_own_rules() -> None:
    from base64 import b64encode
    from hashlib import sha256

    content = diff_report(diff(DEMO, DEMO).to_dict())
    script = content.split("<script>")[1].split("</script>")[0]
    assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in content


def test_a_checkpoint_with_ranks(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    succeeds("inspect", LLAMA.run, "--report", out)
    page = sound(out.read_text(encoding="utf-8"))
    assert page.count("td", "w") == 2  # two stages of one rank
    assert page.count("rect", "l") == 4 and page.count("rect", "b") == 4  # layers; chunks
    tips = [a["title"] for t, a in page.tags if t == "td" and "title" in a]
    assert any(tip is not None and tip.startswith("mp_rank_00_001: 14 tensors") for tip in tips)
    assert any("chunk 1" in text for text in page.text)


def test_a_checkpoint_of_files() -> None:
    page = sound(inspect_report(render.describe(ckptconv.open(DEMO), None)))
    assert page.count("svg") == 0 and page.count("table", "sortable") == 3


def test_differences_are_a_map_of_layers_and_kinds(tmp_path: Path) -> None:
    tensors = {f"model.layers.{n}.{k}.weight": torch.ones(4, 4) for n in range(3) for k in ("q", "k", "norm")}
    save_file(tensors, tmp_path / "a.safetensors")
    tensors["model.layers.1.q.weight"][0, 0] = 3
    tensors["model.layers.2.k.weight"] = torch.ones(2, 4)
    del tensors["model.layers.0.norm.weight"]
    tensors["model.norm.weight"] = torch.full((3,), float("nan"))
    save_file(tensors, tmp_path / "b.safetensors")
    out = tmp_path / "page.html"
    result = run_command("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--report", out)
    assert result.code == 3
    page = sound(out.read_text(encoding="utf-8"))
    heats = [a.get("style") for t, a in page.tags if t == "td" and a.get("class") == "h"]
    assert len(heats) == 7 and sum(style is not None for style in heats) == 1
    marks = [a["title"] for t, a in page.tags if t == "td" and a.get("class") == "mark"]
    assert sorted(m.rpartition(": ")[2] for m in marks if m) == [
        "4 x 4 in A, 2 x 4 in B",
        "only in A",
        "only in B",
    ]


def test_a_verification(tmp_path: Path) -> None:
    ckptconv.convert(DEMO, tmp_path / "out")
    good = sound(verify_report(verify_roundtrip(DEMO, tmp_path / "out").to_dict()))
    assert "Verified" in good.text
    weights = tmp_path / "out" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    bad = sound(verify_report(verify_roundtrip(DEMO, tmp_path / "out").to_dict()))
    assert "Not equal to the source" in bad.text and bad.count("td", "bad") == 1


def test_a_verification_shows_both_sides_and_where_they_differ(tmp_path: Path) -> None:
    source = LLAMA.run
    ckptconv.convert(source, tmp_path / "out", config=str(LLAMA.hf))
    weights = tmp_path / "out" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] += 1
    tensors["model.layers.9.extra"] = torch.ones(2)
    save_file(tensors, weights, {"format": "pt"})
    page = tmp_path / "page.html"
    assert run_command("verify-roundtrip", source, tmp_path / "out", "--report", page).code == 3
    found = sound(page.read_text(encoding="utf-8"))
    assert {"Source: who holds what", "Source: layers by stage", "Output: who holds what"} <= set(found.text)
    heats = [a for t, a in found.tags if t == "td" and a.get("class") == "h" and a.get("style")]
    assert len(heats) == 1 and str(heats[0]["title"]).startswith("model.layers.2.mlp.up_proj.weight: 1 of")
    (mark,) = [a["title"] for t, a in found.tags if t == "td" and a.get("class") == "mark"]
    assert str(mark).startswith("model.layers.9.extra")


def rank(tp: int, pp: int, ep: int) -> dict[str, Any]:
    name = f"mp_rank_{tp:02d}_{pp:03d}_{ep:03d}"
    return {
        "name": name,
        "path": name,
        "bytes": 100 + pp,
        "tensors": 3,
        "copies": 7,
        "tp": tp,
        "pp": pp,
        "ep": ep,
    }


def test_the_grid_of_very_many_ranks_is_put_together() -> None:
    ranks = [rank(tp, pp, ep) for pp in range(16) for ep in range(32) for tp in range(8)]
    content = grid(ranks)
    page = Page(content)
    assert page.count("td", "w") == 16 * 32 and "a cell is 8 ranks" in content
    tips = [a["title"] for t, a in page.tags if t == "td" and "title" in a]
    assert tips[0] == "ep 0: 8 ranks, 100 B each" and len(content) < 200_000
    few = Page(grid(ranks[:8]))
    assert few.count("td", "w") == 8 and any(t.startswith("mp_rank_07_000_000") for t in tips_of(few))
    only_tp = grid([rank(tp, 0, 0) for tp in range(100)])
    assert Page(only_tp).count("td", "w") == 34 and "tp 0-2: 3 ranks" in only_tp


def tips_of(page: Page) -> list[str]:
    return [str(a["title"]) for t, a in page.tags if t == "td" and "title" in a]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    save_file({HOSTILE: torch.ones(2), "w": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file(
        {HOSTILE: torch.zeros(2), f"{HOSTILE}2": torch.ones(2), "w": torch.ones(3)},
        tmp_path / "b.safetensors",
    )
    found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").to_dict()
    found["notes"].append({"level": "warning", "text": HOSTILE})
    for content in (
        diff_report(found),
        diff_report(
            found, *[render.describe(ckptconv.open(tmp_path / f"{n}.safetensors"), None) for n in "ab"]
        ),
        verify_report(
            verify_roundtrip(tmp_path / "a.safetensors", tmp_path / "b.safetensors").to_dict(), [HOSTILE]
        ),
        inspect_report(render.describe(ckptconv.open(tmp_path / "a.safetensors"), None)),
    ):
        page = sound(content)
        assert page.count("img") == 0
        assert "\u202e" not in content and "\x00" not in content and "\\u202e" in content
    assert "</script><script>" not in re.sub(r"\s", "", diff_report(found))


def test_a_table_of_very_many_tensors_shows_some_and_holds_all() -> None:
    data: dict[str, Any] = render.describe(ckptconv.open(DEMO), None)
    data["tensors"] = [
        {"name": f"t{n}{HOSTILE if n == 1 else ''}", "shape": [n], "dtype": "float32"} for n in range(18_867)
    ]
    content = inspect_report(data)
    page = sound(content)
    assert "3,000 of 18,867 shown" in page.text and page.count("tr") < 3100 and len(content) < 1_000_000
    (packed,) = re.findall(r'<template class="rest" data-rows="18867">([^<]*)</template>', content)
    rest = gzip.decompress(b64decode(packed)).decode()
    Page(f"<table>{rest}</table>")
    named = set(re.findall(r"<code>(t\d+)", content)) | set(re.findall(r"<code>(t\d+)", rest))
    assert named == {f"t{n}" for n in range(18_867)} and "<script>" not in rest


def test_the_filter_and_sorting_find_every_row(tmp_path: Path) -> None:
    """Tried in a browser where there is one: a page that a script of the test types into."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium")
    data: dict[str, Any] = render.describe(ckptconv.open(DEMO), None)
    data["tensors"] = [{"name": f"t{n}.", "shape": [1], "dtype": "float32"} for n in range(7000)]
    content = re.sub(r"<meta http-equiv[^>]*>", "", inspect_report(data))
    typed = """<script>
const part = [...document.querySelectorAll("div.table")].at(-1), filter = part.querySelector("input");
const type = words => { filter.value = words; filter.dispatchEvent(new Event("input")); };
const text = name => part.querySelector(name).textContent;
const said = () => `${text(".count")} ${text("tbody tr")}`;
setTimeout(() => type("t6999."), 100);
setTimeout(() => { document.title = said(); type(""); part.querySelector("th button").click(); }, 1500);
setTimeout(() => { document.title += " / " + said(); }, 3000);
</script></body>"""
    page = tmp_path / "page.html"
    page.write_text(content.replace("</body>", typed))
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    )
    flags = (*flags, f"--user-data-dir={tmp_path}", "--virtual-time-budget=6000", "--dump-dom", page.as_uri())
    shown = subprocess.run([browser, *flags], capture_output=True, timeout=120, check=True).stdout.decode()
    (title,) = re.findall(r"<title>(.*)</title>", shown)
    assert title.startswith("1 of 7,000 shown t6999.") and " / 3,000 of 7,000 shown t6999." in title


def test_values_that_differ_look_different() -> None:
    assert apart([1.0, 1.0]) == "1, 1" and apart([0.5, 0.75]) == "0.5, 0.75"
    assert apart([1.2930991, 1.2931018]) == "1.293099, 1.293102"
    one = 1 + 2**-52
    assert len(set(apart([1.0, one]).split(", "))) == 2
    assert apart([None, "nan"]) == ", nan" and apart(()) == ""


def test_equal_and_absent_cells_are_told_apart_without_colour() -> None:
    tensors = [(f"model.layers.{n}.{k}.weight", k == "b" and n == 1) for n in range(2) for k in "ab"]
    data = {
        "tensors": [
            {"name": n, "verdict": "equal", "shape": [1], "relative": 0, "unbounded": 0}
            for n, gone in tensors
            if not gone
        ],
        "only_a": [],
        "only_b": [],
    }
    page = Page(heat(data))
    cells = [a for t, a in page.tags if t == "td"]
    assert [c.get("class") for c in cells].count("h") == 3 and {} in cells
    assert {"absent", "equal"} <= {a.get("class") for t, a in page.tags if t == "i"}


def test_a_column_that_says_nothing_is_left_out() -> None:
    rows = [(Cell("a"), Cell(""), Cell("1", 1, right=True)), (Cell("b"), Cell(""), Cell("", 0, right=True))]
    shown = Page(table(("name", "nothing", "count"), rows, label="all"))
    assert shown.count("th") == 2 and shown.count("td") == 4 and "nothing" not in "".join(shown.text)
    assert Page(table(("name", "nothing"), (), label="none")).count("th") == 2


def test_paper_is_white_whatever_the_screen_is() -> None:
    content = inspect_report(render.describe(ckptconv.open(DEMO), None))
    dark = re.findall(r"@media ([^{]*)\(prefers-color-scheme:dark\)", content)
    assert dark == ["screen and "]
    paper = content[content.index("@media print") :]
    assert "max-height:none" in paper and "input{display:none}" in paper  # nothing is hidden in a box


def test_a_report_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    fails(1, "inspect", DEMO, "--report", tmp_path / "nowhere" / "page.html", naming=("nowhere",))
    with pytest.raises(ckptconv.CkptconvError):
        write_report(tmp_path, "a folder")
