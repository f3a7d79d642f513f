"""Print to people: results to stdout, notes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from ckptconv.cli.clean import escape, without_markup
from ckptconv.cli.streams import own
from ckptconv.numbers.sizes import size_text as size

# rich is imported where something is shown: 50 ms that a quiet run does not pay.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "forget_notes",
    "keep_notes",
    "lines",
    "new_table",
    "notes",
    "plural",
    "remarks",
    "results",
    "size",
]

_UNFOLDED: Final = 100_000  # columns
_COLOURED: Final = ("FORCE_COLOR", "TTY_COMPATIBLE")  # ask rich for colours in a pipe, too
_said: set[tuple[str, str]] = set()
_kept: list[tuple[str, str]] = []
_LEVEL = {"info": "cyan", "guess": "yellow", "warning": "bold yellow"}


def results() -> Console:
    """Return the console of results: stdout."""
    return _console(sys.stdout)


def remarks() -> Console:
    """Return the console of notes: stderr."""
    return _console(sys.stderr)


class Lines(Protocol):
    """Print text with rich's markup."""

    def print(self, text: str, /) -> None:
        """Print a text on a line."""


class _Plain:
    """Print lines into a file or a pipe without rich, which takes 30 ms to load."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = own(stream)

    def print(self, text: str, /) -> None:
        self._stream.write(without_markup(text) + "\n")


def lines(stream: TextIO) -> Lines:
    """Return what prints lines of text, of which no table is made, on stdout or stderr."""
    if stream.isatty() or any(os.environ.get(name) for name in _COLOURED):
        return _console(stream)
    return _Plain(stream)


def _console(stream: TextIO) -> Console:
    """Return the console of a stream; what goes into a file or a pipe is not folded, a row is a line."""
    from rich.console import Console

    shown = stream.isatty()
    return Console(file=own(stream), highlight=False, soft_wrap=not shown, width=None if shown else _UNFOLDED)


def forget_notes() -> None:
    """Begin a run of the command line: no note has been printed yet."""
    _said.clear()
    _kept.clear()


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def new_table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """Return a table without lines; ``right`` names the columns of numbers."""
    from ckptconv.cli.tables import NameTable

    made = NameTable(
        box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", header_style="dim"
    )
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def keep_notes(found: Iterable[tuple[str, str]]) -> None:
    """Keep notes for the end: beside the outcome, or after the error, they do not scroll away."""
    _kept.extend(found)


def notes(found: Iterable[tuple[str, str]] = (), *, failed: bool = False) -> None:
    """Print notes to stderr, those that were kept first, each once in a run of the command line.

    Args:
        found: Level and text of each.
        failed: Whether this follows an error, which asks for no news of what went well.
    """
    every = dict.fromkeys((*_kept, *found))
    _kept.clear()
    fresh = [note for note in every if note not in _said and not (failed and note[0] == "info")]
    if not fresh:
        return
    _said.update(fresh)
    console = lines(sys.stderr)
    for level, text in fresh:
        console.print(f"[{_LEVEL[level]}]{level}:[/] {escape(text)}")
