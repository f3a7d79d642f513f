"""Lay out tables whose names stay whole where they fit."""

from __future__ import annotations

import re
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

__all__ = ["NameTable"]

_NAMES: Final = frozenset({"name", "tensor", "file", "family", "what"})
_TEXT: Final = 24  # columns in which running text can still be read
_GAP: Final = 2  # between two columns
_SHORT: Final = 16  # columns for a name


class NameTable(Table):
    """A table whose column of names is not folded if the others have room beside it, else after dots."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = {
            i: max((console.measure(cell).maximum for cell in (column.header, *column.cells)), default=0)
            for i, column in enumerate(self.columns)
        }
        names = next((i for i, column in enumerate(self.columns) if column.header in _NAMES), None)
        if names is not None:
            text = {i for i, c in enumerate(self.columns) if i != names and c.justify == "left"}
            need = sum(min(width, _TEXT) if i in text else width for i, width in widths.items())
            gaps = _GAP * (len(widths) - 1)
            self.columns[names].no_wrap = need + gaps <= options.max_width
            if not self.columns[names].no_wrap:
                room = options.max_width - gaps - (need - widths[names])
                cells = self.columns[names]._cells
                cells[:] = [_folded(c, room) if isinstance(c, str) else c for c in cells]
        yield from super().__rich_console__(console, options)


def _folded(name: str, width: int) -> str:
    """Return a name in lines that end with its dots; parts that are longer are folded anywhere."""
    if not _SHORT <= width < len(name) or not name.isascii() or set(name) & set(" [\\"):
        return name
    lines = [""]
    for part in re.findall(r"[^.]+\.?|\.", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
