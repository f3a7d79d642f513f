"""Run the command line and kill it from within: ``dies.py N OUT WORDS...`` at its N-th step in OUT.

A step is a file opened to be written, renamed or removed there, just before it is done. With N = 0 it lives,
and the last line on stderr says how many steps there were, which of them was the first to give a name, and
how many seconds went by from the first step to the end.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def main() -> None:
    """Count steps, and run."""
    at, out, words = int(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
    steps = first = 0
    begin = 0.0

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal steps, first, begin
        if event not in ("open", "os.rename", "os.remove", "os.rmdir") or not isinstance(
            args[0], (str, bytes)
        ):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not os.path.abspath(os.fsdecode(args[0])).startswith(out + os.sep):
            return
        steps += 1
        begin = begin or time.monotonic()
        if event == "os.rename" and not first:
            first = steps
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv = ["ckptconv", *words]
    from ckptconv.cli import main as run

    try:
        run()
    finally:
        print(f"\n{steps} {first} {time.monotonic() - begin}", file=sys.stderr)


if __name__ == "__main__":
    main()
