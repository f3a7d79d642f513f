"""Lay out tables whose names stay whole where they fit."""

from __future__ import annotations

from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

__all__ = ["NameTable"]

_NAMES: Final = frozenset({"name", "tensor", "file", "family", "what"})
_TEXT: Final = 24  # columns in which running text can still be read
_GAP: Final = 2  # between two columns


class NameTable(Table):
    """A table whose column of names is not folded if the others have room beside it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = {
            i: max((console.measure(cell).maximum for cell in (column.header, *column.cells)), default=0)
            for i, column in enumerate(self.columns)
        }
        names = next((i for i, column in enumerate(self.columns) if column.header in _NAMES), None)
        if names is not None:
            text = {i for i, c in enumerate(self.columns) if i != names and c.justify == "left"}
            need = sum(min(width, _TEXT) if i in text else width for i, width in widths.items())
            self.columns[names].no_wrap = need + _GAP * (len(widths) - 1) <= options.max_width
        yield from super().__rich_console__(console, options)
