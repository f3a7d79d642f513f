"""Lines are printed into files and pipes as rich would print them, without rich."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.markup import escape as rich_escape

from ckptconv.cli.clean import escape, without_markup
from ckptconv.cli.console import lines
from ckptconv.errors import printable

_TEXTS = st.text(st.sampled_from("ab[]/@#\\ :=1"), max_size=24)


def _shown_by_rich(text: str) -> str:
    out = io.StringIO()
    Console(file=out, highlight=False, soft_wrap=True, width=100_000, emoji=False).print(text)
    return out.getvalue()


@given(_TEXTS)
def test_names_with_brackets_are_shown_as_they_are(text: str) -> None:
    assert escape(text) == rich_escape(printable(text))
    if not text.endswith("\\"):
        assert without_markup(f"[bold]a[/] {escape(text)} [dim]({escape(text)})[/]") == f"a {text} ({text})"
    if "\\" not in text:  # of which rich loses one before a bracket that is no tag's
        line = f"[bold yellow]warning:[/] {escape(text)} [dim]({escape(text)})[/]"
        assert without_markup(line) + "\n" == _shown_by_rich(line)


def test_a_pipe_gets_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    out = io.StringIO()
    lines(out).print("[dim]cast:[/] a\\[b] float32 :smile:")
    assert out.getvalue() == "cast: a[b] float32 :smile:\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = io.StringIO()
    lines(coloured).print("[dim]cast:[/] a")
    assert "\x1b[" in coloured.getvalue()
