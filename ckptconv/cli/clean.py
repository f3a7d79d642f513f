"""Make text fit to be printed: names, values and messages say nothing to a terminal but themselves."""

from __future__ import annotations

import re

from ckptconv.errors import printable

__all__ = ["clean_lines", "escape", "without_markup"]

# rich 15, markup.py: what is taken for a tag, and the backslashes before it.
_TAG = re.compile(r"(\\*)(\[[a-z#/@][^[]*?\])")
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


def escape(text: str) -> str:
    """Return a text that rich shows as it is, on one line, without secrets."""
    found = _TAG.sub(r"\1\1\\\2", printable(text))
    return found + "\\" if found.endswith("\\") and not found.endswith("\\\\") else found


def without_markup(text: str) -> str:
    """Return what rich shows of a text with markup, but for the colours."""

    def shown(tag: re.Match[str]) -> str:
        count, escaped = divmod(len(tag[1]), 2)
        return "\\" * count + (tag[2] if escaped else "")

    return _TAG.sub(shown, text)


def clean_lines(text: str, *, colours: bool) -> str:
    """Clean what another library prints, line by line.

    Args:
        text: What it prints.
        colours: Whether it may colour what it prints (on a terminal).
    """
    if text.isascii() and text.replace("\n", "").isprintable() and ":/" not in text:
        return text
    parts = _COLOUR.split(text) if colours else [text]
    return "".join(p if colours and _COLOUR.fullmatch(p) else _lines(p) for p in parts)


def _lines(text: str) -> str:
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
