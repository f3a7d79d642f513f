"""End in good order when the shell or a scheduler asks for it: SIGINT, SIGTERM and SIGHUP alike."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["Heard", "heeding"]

_SOON = 0.005  # seconds

_SIGNALS = tuple(s for n in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, n, None)) is not None)


class Heard:
    """Remember the signal that asked to end.

    Attributes:
        number: Its number, 0 if none came.
        holding: Whether a signal is only remembered. An exception in the middle of an import leaves halves of
            modules behind, or is swallowed there.
    """

    def __init__(self) -> None:
        self.number = 0
        self.holding = False

    @property
    def exit_code(self) -> int:
        """What the shell sees of a process that the signal ended: 130, 143 or 129."""
        return 128 + (self.number or signal.SIGINT)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold signals back while something is done.

        Raises:
            KeyboardInterrupt: at the end, if one came.
        """
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.number:
            raise KeyboardInterrupt

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.holding:
            return
        if frame is not None and _swallows(frame):
            again = threading.Timer(_SOON, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        raise KeyboardInterrupt


def _swallows(frame: FrameType) -> bool:
    """Whether Python prints what is raised here, and goes on: callbacks of import locks, finalizers."""
    return frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__"


@contextmanager
def heeding() -> Iterator[Heard]:
    """Turn the signals into `KeyboardInterrupt`, as Python does SIGINT.

    One that is ignored stays so: ``nohup`` ignores SIGHUP, a shell SIGINT for what it runs in the background.
    """
    heard = Heard()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {s: signal.getsignal(s) for s in _SIGNALS}
    usual = (signal.SIG_DFL, signal.default_int_handler)
    mine = [s for s, handler in before.items() if handler in usual]
    for number in mine:
        signal.signal(number, heard._take)
    try:
        yield heard
    finally:
        for number in mine:
            with suppress(KeyboardInterrupt):
                signal.signal(number, before[number])
