"""Print to streams that may be closed, full or watched: printing never ends a run, and hides no failure.

What is lost on the way to stdout is one error at the end; stderr has nobody left to tell.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ckptconv.cli.clean import clean_lines

__all__ = ["Stream", "own", "standard_streams"]

_PADDING = re.compile(r" +(?=\n)")  # of tables: for eyes alone


class Stream(io.TextIOBase):
    """Stand in for ``sys.stdout`` or ``sys.stderr``.

    What other libraries print is cleaned. Who cleans names itself, and steers the terminal (rich, for colours
    and bars), prints to `own`.

    Attributes:
        error: The first error in writing, if there was one; what came after is lost.
        last: What another library printed last.
        own: The same stream, for what is clean already.
    """

    def __init__(self, file: TextIO | None, parent: Stream | None = None) -> None:
        self._file = file
        self._parent = parent
        self.error: Exception | None = None
        self.last = ""
        self.own: Stream = self if parent is not None else Stream(file, self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._file, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def __getattr__(self, name: str) -> Any:  # buffer, name, mode: whatever the stream itself has
        return getattr(self.__dict__.get("_file"), name)

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._file is not None and self._file.isatty()
        return False

    def fileno(self) -> int:
        if self._file is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._file.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.last = text.strip() or self.last
        if self._parent is None or not self.isatty():
            shown = clean_lines(text, colours=self.isatty())
            if " \n" in shown:
                shown = _PADDING.sub("", shown)
        else:
            shown = text
        self._do(lambda file: file.write(_encodable(shown, self.encoding)), needed=bool(text))
        return len(text)

    def write_exactly(self, text: str) -> None:
        """Write what is for programs, and clean already."""
        self._do(lambda file: file.write(_encodable(text, self.encoding)), needed=bool(text))

    def flush(self) -> None:
        self._do(lambda file: file.flush(), needed=False)

    def _do(self, what: Any, *, needed: bool) -> None:
        first = self._parent or self
        if first.error is not None:
            return
        try:
            if self._file is not None:
                what(self._file)
            elif needed:
                raise OSError(errno.EBADF, "it is closed")
        except (OSError, ValueError) as e:  # ValueError: closed in Python
            first.error = e


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)


def own(stream: Any) -> TextIO:
    """Return the stream for what is clean already, of ``sys.stdout`` or ``sys.stderr``."""
    found: TextIO = getattr(stream, "own", stream)
    return found


@contextmanager
def standard_streams() -> Iterator[tuple[Stream, Stream]]:
    """Put streams in the places of stdout and stderr; yield both."""
    _occupy()
    before = sys.stdout, sys.stderr
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        for stream, file in zip((out, err), before, strict=True):
            stream.flush()
            if stream.error is not None:
                _sink(file)
        sys.stdout, sys.stderr = before


def _occupy() -> None:
    """Open what the shell has closed of the descriptors 0, 1 and 2.

    The next file that is opened would get the number, and what any library prints would go into it.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def _sink(file: TextIO | None) -> None:
    """Let what is left in a broken stream's buffer go nowhere, or Python fails at its end on it."""
    with suppress(OSError, ValueError, AttributeError):
        fd = file.fileno()  # type: ignore[union-attr]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd)
        os.close(null)
        file.flush()  # type: ignore[union-attr]
