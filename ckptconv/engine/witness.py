"""Say what a run has lost whose process was ended without a word, as Ray ends those whose cluster is gone."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

__all__ = ["Witness"]

# It reads until the process that it stands by is gone, and says what it was told last.
_PROGRAM = """
import signal, sys
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(one, signal.SIG_IGN)
last = ""
for last in sys.stdin:
    pass
if last := last.strip():
    sys.stderr.write("\\n" + last.replace("\\x1f", "\\n") + "\\n")
"""


class Witness:
    """Stand by this process, as a process of its own, and speak for it if it ends before `dismiss`.

    Ray ends the process at once when the store of its node is gone (``Terminate the process`` in
    connection.cc, 2.60), or the head for a minute (rpc_client.h): no error is raised, no handler is called.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def tell(self, text: str) -> None:
        """Tell what is to be said from now on."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(text.replace("\n", "\x1f") + "\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """Let it go without a word."""
        self.tell("")
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
