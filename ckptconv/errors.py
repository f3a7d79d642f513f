"""Define every error ckptconv raises, each with its exit code.

An error says what was found, where (file, key), and what to do next.
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import ClassVar

__all__ = [
    "CkptconvError",
    "ClusterError",
    "FormatError",
    "InputChangedError",
    "InterruptedRunError",
    "MismatchError",
    "OutputError",
    "PlanError",
    "UsageError",
]


_MAX_MESSAGE = 10_000


def _printable(text: str) -> str:
    """Cut what is too long to be read, and spell out what a file's names could do to a terminal."""
    if len(text) > _MAX_MESSAGE:
        text = f"{text[:_MAX_MESSAGE]}... ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class CkptconvError(Exception):
    """Report a failure with its place and the next step to take.

    Args:
        message: What is wrong, naming the tensor, key or value.
        where: The file or folder it was found in.
        hint: What the user can do about it; each kind of error has a usual one.
    """

    exit_code: ClassVar[int] = 1
    usual_hint: ClassVar[str | None] = None

    def __init__(
        self, message: str, *, where: str | PathLike[str] | None = None, hint: str | None = None
    ) -> None:
        message = _printable(message)
        super().__init__(message)
        self.message = message
        self.where = None if where is None else fspath(where)
        self.hint = hint or self.usual_hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.where is not None:
            parts.append(f"  in: {self.where}")
        if self.hint is not None:
            parts.append(f"  do: {self.hint}")
        return "\n".join(parts)


class FormatError(CkptconvError):
    """A file is damaged, hostile, or of a form this version cannot read."""

    usual_hint: ClassVar[str | None] = (
        "copy the files again; if that does not help, they are damaged or of an unknown form"
    )


class OutputError(CkptconvError):
    """The output cannot be written: folder in use, disk full, no permission."""


class ClusterError(CkptconvError):
    """A cluster cannot carry out a conversion: not there, nodes lost, or a node that sees other files."""


class InputChangedError(CkptconvError):
    """A source file changed while it was being converted."""


class UsageError(CkptconvError):
    """Flags that contradict each other or the checkpoint."""

    exit_code = 2


class MismatchError(CkptconvError):
    """Data that must be equal differs: replicas, or a result against its source."""

    exit_code = 3


class PlanError(CkptconvError):
    """A conversion refused from metadata alone: a tensor unmapped, uncovered or misshapen."""

    exit_code = 4
    usual_hint: ClassVar[str | None] = "check that all files are there, unchanged, and of one save"


class InterruptedRunError(CkptconvError):
    """The run was interrupted; finished files are kept for ``--resume``."""

    exit_code = 130
