"""Help is short, names and choices in it are whole, and its examples can be pasted."""

from __future__ import annotations

import re
import shlex

import pytest
from typer.main import get_command

from ckptconv.cli.app import build
from running import ckptconv

NAMES = list(get_command(build(None)).commands)  # type: ignore[attr-defined]


def lines(monkeypatch: pytest.MonkeyPatch, width: int, *words: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    result = ckptconv(*words)
    assert result.code == 0
    return result.out.splitlines()


@pytest.mark.parametrize("name", ["", *NAMES])
def test_short_and_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = get_command(build(name or None))
    flags = set()
    if name:
        command = command.commands[name]  # type: ignore[attr-defined]
        flags = {
            flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("-")
        }
    for width in (80, 120):
        for flag in ("--help", "-h"):
            short = lines(monkeypatch, width, *([name] if name else []), flag)
            assert len(short) <= 45 and max(map(len, short)) <= width, flag
            assert "Examples:" in "\n".join(short)
        whole = lines(monkeypatch, width, *([name] if name else []), "--help-all")
        for line in (*short, *whole):
            assert not re.search(r"[A-Za-z0-9]-$", line), f"broken at a hyphen: {line}"
            for metavar in re.findall(r"\[[^\]]*\|[^\]]*", line):
                assert f"{metavar}]" in line, f"broken choices: {line}"
        text = "\n".join(whole)
        shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text))
        assert flags <= shown, flags - shown


@pytest.mark.parametrize("name", ["", *NAMES])
def test_examples_can_be_pasted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines(monkeypatch, 80, *([name] if name else []), "--help")
    examples = [line.strip() for line in shown[shown.index("  Examples:") + 1 :]]
    assert examples
    for example in examples:
        words = shlex.split(example.split("|")[0] if " | " in example else example, comments=True)
        words = [w for w in words if "=" not in w or w.startswith("-")]
        assert words[0] == "ckptconv" and words[1] in NAMES, example
        command = get_command(build(words[1])).commands[words[1]]  # type: ignore[attr-defined]
        command.make_context(words[1], words[2:])


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_called_as_in_the_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines(monkeypatch, 80, name, "--help")
    usage = shown[0].removeprefix(f"Usage: ckptconv {name} [OPTIONS]").split()
    assert all(re.fullmatch(r"[A-Z/_]+|\.\.\.|\[[A-Z]+\]", word) for word in usage), shown[0]
    if usage:
        listed = shown[shown.index("Arguments:") + 1 : shown.index("Options:") - 1]
        called = [line.strip() for line in listed if re.match(r"  \S", line)]
        assert all(any(line.startswith(word.strip("[]")) for line in called) for word in usage[:1])
        assert not any("<" in line for line in listed), listed
