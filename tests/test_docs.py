"""The pages lead somewhere, in both languages, and the commands they show are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main

from ckptconv.cli.app import build
from running import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ENGLISH, CHINESE = ROOT / "docs", ROOT / "docs" / "zh"
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"(?m)^ {4}(?:\$ )?((?:[A-Z_]+=\S+ )*ckptconv .*)$")
# What stands for something else, and is no flag.
_IDS = [p.relative_to(ROOT).as_posix() for p in PAGES]


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES, ids=_IDS)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("folder", [ENGLISH, CHINESE], ids=lambda p: p.name)
def test_every_page_has_a_twin_that_it_names(folder: Path) -> None:
    prefix, other = ("zh/", CHINESE) if folder == ENGLISH else ("../", ENGLISH)
    for page in folder.glob("*.md"):
        assert (other / page.name).is_file(), page.name
        assert f"]({prefix}{page.name})" in page.read_text(encoding="utf-8").split("\n## ")[0], page.name


def test_the_readmes_fit_a_screen_or_two() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 140, name


def _flags(command: str) -> set[str] | None:
    """Return the flags of a command; None if there is no such command."""
    group = typer.main.get_command(build(command, everything=True))
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    found = group.commands.get(command)  # type: ignore[attr-defined]
    return None if found is None else {o for p in found.params for o in (*p.opts, *p.secondary_opts)}


def test_the_commands_of_the_pages_are_commands_with_these_flags() -> None:
    known: dict[str, set[str] | None] = {}
    wrong, count = [], 0
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for line in _BLOCK.findall(page.read_text(encoding="utf-8")):
            words = shlex.split(line.replace("...", ""), comments=True)
            words = words[words.index("ckptconv") + 1 :]
            for stop in ("|", "&&", ">", ";"):
                words = words[: words.index(stop)] if stop in words else words
            if not words or words[0].startswith("-"):
                continue
            if words[0] not in known:
                known[words[0]] = _flags(words[0])
            flags, count = known[words[0]], count + 1
            given = {w.partition("=")[0] for w in words[1:] if w.startswith("--")}
            lacking = {words[0]} if flags is None else given - flags - {"--help", "--help-all"}
            if lacking:
                wrong.append(f"{page.name}: {line}: {', '.join(sorted(lacking))}")
    assert wrong == [] and count > 100


def _shape(page: Path) -> tuple[int, int, int]:
    """Count headings, rows of tables and items of lists."""
    text = page.read_text(encoding="utf-8")
    return tuple(len(re.findall(kind, text)) for kind in (r"(?m)^#+ ", r"(?m)^\|", r"(?m)^[-*] "))  # type: ignore[return-value]


_TWINS = [(p, CHINESE / p.name) for p in sorted(ENGLISH.glob("*.md"))]
_TWINS.append((ROOT / "README.md", ROOT / "README.zh-CN.md"))


@pytest.mark.parametrize(("page", "twin"), _TWINS, ids=lambda p: p.name)
def test_twins_show_the_same_commands_and_rows(page: Path, twin: Path) -> None:
    """The Chinese page has each command of the English one in its order, and may have more, for mirrors."""
    ours, theirs = (
        [line.split(" #")[0].rstrip() for line in _BLOCK.findall(p.read_text(encoding="utf-8"))]
        for p in (page, twin)
    )
    rest = iter(theirs)
    assert [line for line in ours if line not in rest] == []
    assert _shape(page) == _shape(twin)


# One word for one thing; what the field says in English stays English.
_TERMS = {
    "检查点": "checkpoint",
    "步数": "step",
    "文件夹": "目录",
    "底座": "基座",
    "返回码": "退出码",
    "主参数": "主权重",
}


@pytest.mark.parametrize("page", [t for _, t in _TWINS], ids=lambda p: p.name)
def test_one_word_for_one_thing_in_chinese(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [f"{word}: {right}" for word, right in _TERMS.items() if word in text] == []
    plain = re.sub(r"(?m)`[^`\n]*`|^ {4}.*$|\([^)\s]*\)", "", text)
    assert not re.search(r"(?<![\w/-])adapters?(?![\w/-])", plain), "适配器"
