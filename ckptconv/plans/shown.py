"""Show an object in one line, and in a notebook as a small table: never by all it holds."""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.errors import printable

__all__ = ["Shown", "count"]

_LONG = 100  # characters of a value in one line
_STYLE = "text-align:left;vertical-align:top"


class Shown:
    """Give a short repr and an HTML one, from what `rows` says of an object."""

    __slots__ = ()

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing, by its name; what is None or empty is left out."""
        raise NotImplementedError

    def __repr__(self) -> str:
        said = ", ".join(f"{k}: {_short(v)}" for k, v in _said(self).items())
        return f"<{type(self).__name__} {said}>"

    def _repr_html_(self) -> str:
        from html import escape

        lines = "".join(
            f'<tr><th style="{_STYLE}">{escape(k)}</th><td style="{_STYLE}">{escape(printable(v))}</td></tr>'
            for k, v in _said(self).items()
        )
        return f"<table><caption>{escape(type(self).__name__)}</caption>{lines}</table>"


def _said(shown: Shown) -> dict[str, str]:
    return {k: str(v) for k, v in shown.rows().items() if v is not None and str(v) != ""}


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def count(number: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
