"""Define every error ckptconv raises, each with its exit code.

An error says what was found, where (file, key), and what to do next.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    "keep_secret",
    "lacking",
    "printable",
    "without_secrets",
]


_MAX_MESSAGE = 10_000

# Of a URL: who asks (a token, or a name and a password; a port is none); what a signed one is signed with.
_USER = re.compile(
    r"(\b[A-Za-z][A-Za-z0-9+.-]*:/{1,2})"
    r"(?:[^/\s:@\[]*:(?!\d{1,5}(?:[/?#]|\s|$))[^\s@]*(?:@[^\s/@]*)*@|(?<=https://)[^/\s:@]+@|(?<=http://)[^/\s:@]+@)"
)
_SIGNED = re.compile(
    r"([?&][^=&\s#]*(?:token|sig|key|secret|passw|pwd|credential|auth)[^=&\s#]*=)[^&\s#'\"]+", re.IGNORECASE
)
_SHORTEST_SECRET = 6  # what is shorter stands in other words as well
_secrets: set[str] = set()


def keep_secret(text: str) -> None:
    """Remember a password that a user gave, so that `printable` cuts it whoever repeats it."""
    if len(text) >= _SHORTEST_SECRET:
        _secrets.add(text)


_EXTRAS = {
    "huggingface_hub": "hub",
    "torch": "transformers",
    "transformers": "transformers",
    "sentencepiece": "tokenizers",
    "tiktoken": "tokenizers",
    "ray": "ray",
    "fsspec": "remote",
    "s3fs": "remote",
}


def without_secrets(text: str) -> str:
    """Return a text with ``***`` for what the URLs in it say of users, passwords, tokens and signatures."""
    if ":/" in text:
        text = _SIGNED.sub(r"\1***", _USER.sub(r"\1***@", text))
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


def printable(text: str) -> str:
    """Return a text as it may be printed: on one line, steering no terminal, giving no secret away.

    Names of files and tensors, values of configs and messages of other libraries may hold anything. What is
    no printable character (ends of lines of all kinds, escapes, marks that turn the direction of writing,
    lone surrogates) is spelled out as Python would, and what is too long to be read is cut.
    """
    length = len(text)
    text = without_secrets(text[: 2 * _MAX_MESSAGE])  # a secret that is cut in two is not known as one
    if length > _MAX_MESSAGE:
        text = f"{text[:_MAX_MESSAGE]}... ({length:,} characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class CkptconvError(Exception):
    """Report a failure with its place and the next step to take.

    Args:
        message: What is wrong, naming the tensor, key or value; several lines as a list.
        where: The file or folder it was found in.
        hint: What the user can do about it; each kind of error has a usual one.
    """

    exit_code: ClassVar[int] = 1
    usual_hint: ClassVar[str | None] = None

    def __init__(
        self,
        message: str | Sequence[str],
        *,
        where: str | PathLike[str] | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = printable(message) if isinstance(message, str) else "\n".join(map(printable, message))
        super().__init__(self.message)
        self.where = None if where is None else fspath(where)
        self.hint = hint or self.usual_hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.where is not None:
            parts.append(f"  in: {printable(self.where)}")
        if self.hint is not None:
            parts.append(f"  do: {printable(self.hint)}")
        return "\n".join(parts)


def lacking(error: ModuleNotFoundError) -> CkptconvError | None:
    """Return the error that says which extra brings a package; None if none does."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return CkptconvError(
        f"this needs {package}, which is not installed", hint=f"pip install 'ckptconv[{_EXTRAS[package]}]'"
    )


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
