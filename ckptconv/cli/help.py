r"""Lay help out: what people use first, the rest with ``--help-all``; no name or choice is broken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

__all__ = ["SETTINGS", "HelpCommand", "examples"]

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""What every command's help is called, and how wide it gets at most."""

_OTHERS = "Options"


def examples(lines: Sequence[str]) -> str:
    r"""Return examples as a paragraph that keeps its lines, for which click asks for a ``\b``."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class HelpCommand(TyperCommand):
    """A command whose options stand in groups if all are shown; those that are hidden are counted."""

    @property
    def is_short(self) -> bool:
        """Whether help shows only what people use."""
        return any(getattr(param, "hidden", False) for param in self.params)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the command's name: releases of typer mark arguments each in another way."""
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return [self.options_metavar or "", *(_called(p, usage=True) for p in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each group of options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        hidden = 0
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                hidden += bool(getattr(param, "hidden", False))
                continue
            kind = "Arguments" if param.param_type_name == "argument" else ""
            panel = kind or getattr(param, "rich_help_panel", None) or _OTHERS
            if self.is_short and not kind:
                panel = _OTHERS
            name = _called(param) if kind else record[0]
            groups.setdefault(panel, []).append((name, record[1].replace("  [required]", "")))
        others = groups.pop(_OTHERS, [])
        if hidden:
            others.append(("--help-all", f"Show {hidden} more options as well."))
        for title, rows in (*groups.items(), (_OTHERS, others)):
            with formatter.section(title):
                formatter.write_dl(rows, col_max=26)


def _called(argument: Any, *, usage: bool = False) -> str:
    """Return what help calls an argument; how it is used if it may be left out is in brackets."""
    name = str(argument.metavar or argument.name)
    return f"[{name}]" if usage and not argument.required else name
