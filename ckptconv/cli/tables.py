"""Lay out tables whose names stay whole where they fit."""

from __future__ import annotations

from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

__all__ = ["NameTable"]

_NAMES: Final = frozenset({"name", "tensor", "file", "family", "what"})
_SHARE: Final = 0.65  # of the width that names may take before they are folded


class NameTable(Table):
    """A table whose column of names is not folded if the others have room beside it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for column in self.columns:
            if column.header in _NAMES:
                longest = max((console.measure(cell).maximum for cell in column.cells), default=0)
                column.no_wrap = longest <= options.max_width * _SHARE
        yield from super().__rich_console__(console, options)
