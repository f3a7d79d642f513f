"""Say in Python's words what errors say in the command line's: keywords for flags, calls for commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from ckptconv.engine.options import Options
from ckptconv.errors import CkptconvError, lacking
from ckptconv.plans.options import Choice, Count, Number, Option, Switch, declared
from ckptconv.plans.request import Request
from ckptconv.readers.reader import options_of
from ckptconv.readers.registry import READERS
from ckptconv.writers.registry import WRITERS

__all__ = ["in_python", "pythonic"]

P = ParamSpec("P")
R = TypeVar("R")

_FLAG = re.compile(r"--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?: ([\w.:'*/,-]*[\w'*/]))?")
_QUOTED = re.compile(r"('(?!ckptconv)[a-z]+ [^']*')")
_CALLS = re.compile(r"\bckptconv (verify-roundtrip|convert|inspect|check|diff|explain|ls|average|push)\b")
_VALUE = re.compile(r"[\w.:*,/-]*[\d:*/][\w.:*,/-]*|'[^']*'")


def pythonic(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function whose errors speak of keywords."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except CkptconvError as e:
            e.message, e.hint = in_python(e.message), None if e.hint is None else in_python(e.hint)
            e.args = (e.message,)
            raise
        except ModuleNotFoundError as e:
            if (known := lacking(e)) is None:
                raise
            raise known from e

    return called


def in_python(text: str) -> str:
    """Return a text with keywords for flags, ``tp=4`` for ``--tp 4``, and functions for commands.

    What stands in quotes and is a command of another program stays.
    """
    parts = _QUOTED.split(_CALLS.sub(lambda m: f"ckptconv.{m[1].replace('-', '_')}", text))
    return "".join(part if i % 2 else _FLAG.sub(_keyword, part) for i, part in enumerate(parts))


def _keyword(match: re.Match[str]) -> str:
    flag: str = match[1]
    word: str | None = match[2]
    name, option = _options().get(flag, (flag.replace("-", "_"), None))
    rest = "" if word is None else f" {word}"
    if option is not None and isinstance(option.kind, Switch):
        off = option.off or any(f"/--{flag}" in both for both in option.flags)
        return f"{name}={not off}{rest}"
    if word is None:
        return name
    if option is not None and isinstance(option.kind, Choice):
        known = (*option.kind.words, *option.kind.others, *option.kind.more())
        return f'{name}="{word}"' if word in known else f"{name}{rest}"
    if option is not None and isinstance(option.kind, (Count, Number)) and re.fullmatch(r"[\d.]+", word):
        return f"{name}={word}"
    if name == "to":
        return f'to="{word}"'
    return f'{name}="{word.strip(chr(39))}"' if _VALUE.fullmatch(word) else f"{name}{rest}"


@cache
def _options() -> dict[str, tuple[str, Option | None]]:
    """Return name and option of every flag there is, without its dashes."""
    found: dict[str, tuple[str, Option | None]] = {}
    owners = [declared(Request), declared(Options), *(declared(w.options) for w in WRITERS)]
    for options in (*owners, *(options_of(r) for r in READERS)):
        for name, option in options.items():
            for flag in option.flags or (f"--{name.replace('_', '-')}",):
                for one in flag.split("/"):
                    found.setdefault(one.removeprefix("--"), (name, option))
    return found
