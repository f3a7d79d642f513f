"""Declare options: what a field is called as a flag, what it takes, and what it is for.

An owner of options (a reader, a writer, a request) is a frozen dataclass whose fields are made by `option`.
The command line builds its flags from them, and the same checks hold for Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import UsageError
from ckptconv.numbers.sizes import parse_size
from ckptconv.records import dataclass

__all__ = [
    "DTYPES",
    "SOURCE",
    "Choice",
    "Count",
    "Kind",
    "NoOptions",
    "Number",
    "Option",
    "Paths",
    "Size",
    "Switch",
    "Text",
    "Texts",
    "Whole",
    "checked",
    "declared",
    "flag_of",
    "made",
    "near",
    "option",
]

SOURCE = "source_"
"""What stands before a name that means the source, where the target has an option of that name."""

O = TypeVar("O")  # noqa: E741  (an owner's class)


class Kind(Protocol):
    """What values an option takes."""

    @property
    def metavar(self) -> str | None:
        """What stands for the value in help; None for a switch."""
        ...

    def read(self, value: object) -> object:
        """Return the value as the owner holds it.

        Raises:
            ValueError: saying what would be right.
        """
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """Take any text, a whole number too."""

    metavar: str = "TEXT"

    def read(self, value: object) -> str:
        """Return text as it is."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, (str, PathLike)) or not str(value):
            raise ValueError("text")
        return str(value)


@dataclass(frozen=True, slots=True)
class Texts:
    """Take text once or several times."""

    metavar: str = "GLOB"

    def read(self, value: object) -> tuple[str, ...]:
        """Return all as a tuple."""
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise ValueError("text, or a list of texts")
        return tuple(value)


@dataclass(frozen=True, slots=True)
class Paths:
    """Take the path of a file or folder, or a URL."""

    metavar: str = "PATH"

    def read(self, value: object) -> Path:
        """Return a path."""
        from ckptconv.places.places import place

        if not isinstance(value, (str, PathLike)):
            raise ValueError("a path")
        return place(value).expanduser() if isinstance(value, str) else place(value)


@dataclass(frozen=True, slots=True)
class Choice:
    """Take one of some words.

    Attributes:
        words: The words.
        others: Further names of theirs.
        more: Returns words that plug-ins add.
    """

    words: tuple[str, ...]
    others: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[], Iterable[str]] = tuple

    @property
    def metavar(self) -> str:
        """The words."""
        return "[" + "|".join(self.words) + "]"

    def read(self, value: object) -> str:
        """Return the word."""
        word = self.others.get(str(value), str(value))
        if word in self.words:
            return word
        every = tuple(dict.fromkeys((*self.words, *self.more())))
        if word in every:
            return word
        close = near(word, (*every, *(other for other, meant in self.others.items() if meant in every)))
        raise ValueError(f"one of {', '.join(every)}" + (f" ({close[0]}?)" if close else ""))


class DTypes(Choice):
    """Take an element type by any name it has: bf16, bfloat16, torch.bfloat16, a torch or numpy dtype."""

    def read(self, value: object) -> str:
        """Return torch's name without its prefix, or one of the other words."""
        text = getattr(value, "__name__", None) if isinstance(value, type) else getattr(value, "name", None)
        text = text if isinstance(text, str) else str(value)
        try:
            text = dtype_named(text).name
        except KeyError:
            text = text.removeprefix("torch.")
        return Choice.read(self, text)


DTYPES = DTypes(("keep", "float32", "bfloat16", "float16"))


@dataclass(frozen=True, slots=True)
class Count:
    """Take a whole number, as a number or as text."""

    least: int = 0
    most: int | None = None
    metavar: str = "N"

    def read(self, value: object) -> int:
        """Return the number."""
        try:
            found = int(value) if isinstance(value, str) else value.__index__()  # type: ignore[attr-defined]
        except (ValueError, AttributeError, TypeError):
            found = None
        if found is None or isinstance(value, bool) or found < self.least:
            raise ValueError(f"a whole number from {self.least} on")
        if self.most is not None and found > self.most:
            raise ValueError(f"a whole number from {self.least} to {self.most:,}")
        return int(found)


@dataclass(frozen=True, slots=True)
class Number:
    """Take a number above zero."""

    metavar: str = "X"

    def read(self, value: object) -> float:
        """Return the number."""
        try:
            found = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            found = float("nan")
        if isinstance(value, bool) or not 0 < found < float("inf"):
            raise ValueError("a number above 0")
        return found


@dataclass(frozen=True, slots=True)
class Whole:
    """Take whole numbers from 0 on: ``3,5``, or a list of them."""

    metavar: str = "N,N,..."

    def read(self, value: object) -> tuple[int, ...]:
        """Return the numbers."""
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, Sequence) or len(parts) > 100_000:
            raise ValueError("numbers such as 3,5")
        try:
            return tuple(Count().read(p.strip() if isinstance(p, str) else p) for p in parts)
        except ValueError:
            raise ValueError("numbers such as 3,5") from None


_SIZES = "5GB, 200MB, 512MiB or a number of bytes"


@dataclass(frozen=True, slots=True)
class Size:
    """Take a number of bytes: 300000, 5GB, 512MiB."""

    metavar: str = "SIZE"

    def read(self, value: object) -> int:
        """Return the bytes."""
        if isinstance(value, str):
            try:
                return parse_size(value)
            except UsageError:
                raise ValueError(_SIZES) from None
        try:
            return Count(1).read(value)
        except ValueError:
            raise ValueError(_SIZES) from None


@dataclass(frozen=True, slots=True)
class Switch:
    """Be on or off."""

    metavar: None = None

    def read(self, value: object) -> bool:
        """Return whether it is on."""
        if not isinstance(value, bool):
            raise ValueError("True or False")
        return value


@dataclass(frozen=True, slots=True)
class Option:
    """Describe one option.

    Attributes:
        kind: What it takes.
        help: What it does, for people.
        flags: Its flags; by default ``--`` and the field's name. Of a switch that may be said to be off as
            well, both: ``--fused/--no-fused``.
        panel: The group it stands in, in help.
        common: Whether ``--help`` shows it; ``--help-all`` shows all.
        off: Whether the flag turns the field off: ``--no-assets``.
        default: What holds if it is not given.
    """

    kind: Kind
    help: str
    flags: tuple[str, ...] = ()
    panel: str = ""
    common: bool = False
    off: bool = False
    default: Any = None


def option(
    kind: Kind,
    help: str,
    *flags: str,
    default: Any = None,
    panel: str = "",
    common: bool = False,
    off: bool = False,
) -> Any:
    """Declare a field of an owner's dataclass as an option."""
    made = Option(kind, help, flags, panel, common, off, default)
    return field(default=default, kw_only=True, metadata={"option": made})


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Own no option."""


def declared(owner: type) -> dict[str, Option]:
    """Return the options an owner's class declares, by field."""
    return {f.name: f.metadata["option"] for f in fields(owner) if "option" in f.metadata}


def flag_of(name: str, option: Option) -> str:
    """Return the flag of an option."""
    return option.flags[0].partition("/")[0] if option.flags else "--" + name.replace("_", "-")


def near(name: str, known: Sequence[str]) -> list[str]:
    """Return the names most like this one."""
    return get_close_matches(name, list(known), 2, 0.6)


def made(owner: type[O], given: Mapping[str, object]) -> O:
    """Make an owner of what was given, each value checked; what was given as None is left at its default.

    Raises:
        UsageError: naming the option whose value is not right, and what would be.
    """
    options = declared(owner)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or name not in options:
            if value is not None:
                values[name] = value  # internal: not an option of the user's
            continue
        values[name] = checked(name, options[name], value)
    left = [f.name for f in fields(owner) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    assert not [n for n in left if n not in values], (owner, left)
    return owner(**values)


def checked(name: str, option: Option, value: object) -> object:
    """Return one value as its owner holds it.

    Raises:
        UsageError: naming the option and what would be right.
    """
    try:
        return option.kind.read(value)
    except ValueError as e:
        shown = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}..."
        raise UsageError(f"{flag_of(name, option)} is not {shown}", hint=f"give {e}") from None
