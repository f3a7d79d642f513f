"""The command line."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from ckptconv.cli.later import load_later
from ckptconv.collector import without_collector

if TYPE_CHECKING:
    from ckptconv.cli.signals import Heard

__all__ = ["main"]

_INTERRUPTED = 130
_USAGE = 2
_SHORT = ("inspect", "explain", "ls")  # commands that end once they have told what they found
_NO_READER = 141  # what a shell makes of SIGPIPE


def main() -> None:
    """Run the command line and exit with its code.

    0 done, 1 error, 2 usage, 3 mismatch, 4 plan refused; interrupted: 130 by SIGINT, 143 by SIGTERM, 129 by
    SIGHUP; 141 if nobody reads what is printed any more.
    """
    # Starting takes longer than many conversions: OpenBLAS would start a pool of threads, which nothing
    # here uses, and the collector would look through all that is imported again and again.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # So it would through the millions of boxes of a plan for thousands of ranks.
    gc.set_threshold(100_000, 50, 1000)
    short = sys.argv[1:2] and sys.argv[1] in _SHORT
    load_later("numpy")
    with _quiet(), without_collector() if short else nullcontext():
        code = _run(sys.argv[1:])
        gc.freeze()  # nor at the end: all that is left goes with the process
        sys.exit(code)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Ctrl-C end the process without a traceback as long as nobody heeds it yet."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if usual:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # not in the main thread
        usual = False
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(arguments: list[str]) -> int:
    from ckptconv.cli.signals import heeding
    from ckptconv.cli.streams import standard_streams

    with heeding() as heard, standard_streams() as (out, _):
        code, told = _carry_out(arguments, heard)
        out.flush()
        if out.error is None:
            return code
        if isinstance(out.error, BrokenPipeError):
            return code or _NO_READER  # as of any program before ``head``
        if not told:
            from ckptconv.cli.failures import fail

            text = getattr(out.error, "strerror", None) or str(out.error)
            fail(
                f"stdout takes no more: {text}", None, "only what was to be printed is lost", 1, as_json=False
            )
        return code or 1


def _carry_out(arguments: list[str], heard: Heard) -> tuple[int, bool]:
    """Run the command line; return its exit code, and whether stderr says what went wrong."""
    # --debug may stand before or after the command.
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    as_json = "--json" in arguments
    try:
        with heard.hold():
            from ckptconv.cli.app import build
            from ckptconv.cli.console import forget_notes
            from ckptconv.cli.failures import show_warnings

            forget_notes()

            show_warnings()

            # A shell that completes a line tells it by the environment.
            words = os.environ.get("COMP_WORDS", "").split()[1:] or arguments
            wanted = next((a for a in words if not a.startswith("-")), None)
            app = build(wanted, everything="--help-all" in arguments)
            arguments = ["--help" if a == "--help-all" else a for a in arguments]
        code = app(arguments, prog_name="ckptconv", standalone_mode=True)
        return int(code or 0), False
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
        if code == _USAGE and not heard.number:
            _say_usage(arguments, as_json=as_json)
        if not heard.number or code == 0:
            return code, code in (1, 2)
        return _interrupted(heard, as_json), True
    except KeyboardInterrupt:
        return _interrupted(heard, as_json), True
    except Exception as e:
        from ckptconv.cli.failures import tell

        if debug:
            import traceback

            traceback.print_exception(e)
            return 1, True
        code = tell(e, as_json=as_json)
        return (heard.exit_code if code == _INTERRUPTED else code), True


def _say_usage(arguments: list[str], *, as_json: bool) -> None:
    """Add to what the command line's parser has printed, of a flag unknown or a word missing.

    A path in place of a command gets a command; with ``--json`` it is said as JSON too.
    """
    import shlex

    from ckptconv.cli.printing import print_json

    said = getattr(sys.stderr, "last", "").removeprefix("Error: ")
    command = next((a for a in arguments if not a.startswith("-")), "")
    known = command and not said.startswith("No such command")
    hint = f"ckptconv {command} -h" if known else "ckptconv -h"
    if command and not known and os.path.exists(command):
        hint = f"ckptconv inspect {shlex.quote(command)}"
        print(f"  do: {hint}", file=sys.stderr)
    if not as_json:
        return
    error = {"message": said, "where": None, "hint": hint, "exit_code": _USAGE}
    print_json({"error": error}, indent=None)


def _interrupted(heard: Heard, as_json: bool) -> int:
    from ckptconv.cli.failures import fail

    return fail("interrupted", None, None, heard.exit_code, as_json=as_json)
