"""The command line."""

from __future__ import annotations

import gc
import json
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code.

    0 done, 1 error, 2 usage, 3 mismatch, 4 plan refused, 130 interrupted.
    """
    # Starting takes longer than many conversions: OpenBLAS would start a pool of threads, which nothing
    # here uses, and the collector would look through all that is imported again and again.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # So it would through the millions of boxes of a plan for thousands of ranks.
    gc.set_threshold(100_000, 50, 1000)
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    from ckptconv.errors import CkptconvError
    from ckptconv.places.places import advice

    # --debug may stand before or after the command.
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    as_json = "--json" in arguments
    try:
        from ckptconv.cli.app import app

        code = app(arguments, prog_name="ckptconv", standalone_mode=True)
        return int(code or 0)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 1
    except KeyboardInterrupt:
        return _fail("interrupted", None, None, 130, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except CkptconvError as e:
        if debug:
            raise
        return _fail(e.message, e.where, e.hint, e.exit_code, as_json)
    except (OSError, UnicodeDecodeError) as e:
        if debug:
            raise
        text = f"{e.strerror}" if isinstance(e, OSError) and e.strerror else str(e)
        hint = advice(e) if isinstance(e, OSError) else None
        return _fail(text, getattr(e, "filename", None), hint, 1, as_json)
    except MemoryError:
        return _fail("out of memory", None, "lower --max-memory or --workers", 1, as_json)
    except Exception as e:
        if debug:
            raise
        hint = "this is a bug in ckptconv: run again with --debug and report the traceback"
        return _fail(f"internal error: {type(e).__name__}: {e}", None, hint, 1, as_json)


def _fail(message: str, where: object, hint: str | None, code: int, as_json: bool) -> int:
    """Print an error to stderr, and with ``--json`` to stdout as well, for pipelines."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(message)}")
    if where is not None:
        console.print(f"  [dim]in:[/] {escape(str(where))}")
    if hint is not None:
        console.print(f"  [dim]do:[/] {escape(hint)}")
    if as_json:
        where_text = None if where is None else str(where)
        error = {"message": message, "where": where_text, "hint": hint, "exit_code": code}
        sys.stdout.write(json.dumps({"error": error}) + "\n")
    return code
