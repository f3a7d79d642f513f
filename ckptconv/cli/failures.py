"""Say what went wrong: one error on stderr, and with ``--json`` on stdout as well; return the exit code."""

from __future__ import annotations

import sys
import warnings
from typing import Any, TextIO

from ckptconv.errors import CkptconvError, lacking, printable
from ckptconv.places.places import advice, local_advice
from ckptconv.plugins import PluginWarning

__all__ = ["described", "fail", "show_warnings", "tell"]

_BUG = "this is a bug in ckptconv: run again with --debug and report the traceback"


def described(error: BaseException, code: int) -> dict[str, Any]:
    """Return an error as ``--json`` prints it."""
    known = error if isinstance(error, CkptconvError) else None
    return {
        "error": {
            "message": printable(str(error)) if known is None else known.message,
            "where": None if known is None else known.where,
            "hint": None if known is None else known.hint,
            "exit_code": code,
        }
    }


def tell(error: BaseException, *, as_json: bool) -> int:
    """Print an error, whatever kind it is of, and the warnings that belong to it; return the exit code."""
    from ckptconv.cli.console import notes

    code = _told(error, as_json=as_json)
    notes(failed=True)
    return code


def _told(error: BaseException, *, as_json: bool) -> int:
    if isinstance(error, ModuleNotFoundError) and (known := lacking(error)) is not None:
        error = known
    if isinstance(error, CkptconvError):
        return fail(error.message, error.where, error.hint, error.exit_code, as_json=as_json)
    if isinstance(error, OSError):
        text = printable(error.strerror or str(error) or type(error).__name__)
        where = error.filename if isinstance(error.filename, str | bytes) else None
        name = where.decode(errors="surrogateescape") if isinstance(where, bytes) else where
        return fail(text, name, advice(error) or local_advice(error), 1, as_json=as_json)
    if isinstance(error, UnicodeDecodeError):
        return fail(printable(f"not UTF-8: {error}"), None, None, 1, as_json=as_json)
    if isinstance(error, MemoryError):
        return fail("out of memory", None, "lower --max-memory or --workers", 1, as_json=as_json)
    text = printable(f"internal error: {type(error).__name__}: {error}")
    return fail(text, None, _BUG, 1, as_json=as_json)


def fail(message: str, where: str | None, hint: str | None, code: int, *, as_json: bool) -> int:
    """Print an error; return its exit code. The ends of lines in its message are our own."""
    from rich.console import Console
    from rich.markup import escape

    from ckptconv.cli.streams import own

    lines = [printable(line) for line in message.split("\n")]
    console = Console(file=own(sys.stderr), highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(chr(10).join(lines))}")
    if where is not None:
        console.print(f"  [dim]in:[/] {escape(printable(where))}")
    if hint is not None:
        console.print(f"  [dim]do:[/] {escape(printable(hint))}")
    if as_json:
        from ckptconv.cli.printing import print_json

        print_json(
            {"error": {"message": "\n".join(lines), "where": where, "hint": hint, "exit_code": code}},
            indent=None,
        )
    return code


def show_warnings() -> None:
    """Print what is wrong with plug-ins as a warning of ours, each once."""
    usual = warnings.showwarning
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, PluginWarning):
            usual(message, category, filename, lineno, file, line)
        elif (text := printable(str(message))) not in said:
            from ckptconv.cli.streams import own

            said.add(text)
            print(f"warning: {text}", file=own(sys.stderr))

    warnings.simplefilter("always", PluginWarning)
    warnings.showwarning = show
