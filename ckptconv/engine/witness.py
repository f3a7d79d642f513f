"""Say what a run has lost whose process was ended without a word, as Ray ends those whose cluster is gone."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

__all__ = ["WHAT", "Witness"]

WHAT = "{what}"
"""Stands in what is told for what has happened."""

_LINE = "\x1f"

# It reads until the process that it stands by is gone, and says what it was told last.
_PROGRAM = """
import signal, socket, sys
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(one, signal.SIG_IGN)
last = ""
for last in sys.stdin:
    pass
last = last.strip("\\n")
if last:
    what = "this process was ended without a word, killed or by Ray when that was gone from this machine"
    host, _, port = sys.argv[1].rpartition(":")
    try:
        if port:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        what = f"the head of the cluster is lost ({sys.argv[1]} does not answer)"
    sys.stderr.write("\\n" + last.replace("{what}", what).replace("\\x1f", "\\n") + "\\n")
"""


class Witness:
    """Stand by this process, as a process of its own, and speak for it if it ends before `dismiss`.

    Ray ends the process at once when the store of its node is gone (``Terminate the process`` in
    connection.cc, 2.60), or the head for a minute (rpc_client.h): no error is raised, no handler is called.

    Args:
        head: Host and port of the cluster's head; empty if they are not known.
    """

    def __init__(self, head: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _PROGRAM, head],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def tell(self, text: str) -> None:
        """Tell what is to be said from now on, with `WHAT` for what happened; nothing if it is empty."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(text.replace("\n", _LINE) + "\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """Let it go without a word."""
        self.tell("")
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
