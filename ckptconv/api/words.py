"""Say in Python's words what errors say in the command line's: keywords for flags, calls for commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

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

# What follows a flag in our messages, and is no value of it.
_PROSE: Final = re.compile(
    r"(?:adds|afterwards|and|are|as|by|computes|for|goes|has|holds|if|in|is|leaves|makes|may|merges|names|need|of"
    r"|on|one|or|out|say|says|such|takes|that|the|them|to|was|were|which|with|writes)"
)

_VALUE = r"'[^']*'|(?!--)[^\s'();]*[^\s'(),;:.]"
_FLAG = re.compile(rf"--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?:( )({_VALUE})(?=[\s(),;:.]|$))?")
_QUOTED = re.compile(r"('(?!ckptconv)[a-z]+ [^']*--[^']*')")
_COMMANDS = "verify-roundtrip|convert|inspect|check|diff|explain|ls|average|push"
_CALL = re.compile(rf"\bckptconv ({_COMMANDS})((?: (?:[A-Z]+\b|--[a-z0-9-]+(?: (?:{_VALUE}))?))*)")
_DEBUG = "run again with --debug and "  # Python shows a traceback anyway


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
    """Return a text with keywords for flags, ``tp=4`` for ``--tp 4``, and calls for commands.

    What stands in quotes and is a command of another program stays, and so do flags that are not ours.
    """
    parts = _QUOTED.split(_CALL.sub(_call, text.replace(_DEBUG, "")))
    return "".join(part if i % 2 else _FLAG.sub(_keyword, part) for i, part in enumerate(parts))


def _call(match: re.Match[str]) -> str:
    """Return a command as a function; with its arguments where it has any."""
    name, words = match[1].replace("-", "_"), match[2]
    if not words:
        return f"ckptconv.{name}"
    flags = [_FLAG.sub(_keyword, found[0]) for found in _FLAG.finditer(words)]
    if any(flag.startswith("--") for flag in flags):
        return match[0]  # Python has no word for it
    given = _FLAG.sub("", words).split()
    return f"ckptconv.{name}({', '.join((*given, *flags))})"


class _Keyword(NamedTuple):
    """A keyword: its name, the option it is, and what kind of value it takes."""

    name: str
    option: Option | None = None
    is_switch: bool = False
    is_number: bool = False


def _keyword(match: re.Match[str]) -> str:
    flag, word = match[1], match[3]
    known = _keywords().get(flag)
    if known is None:
        return match[0]
    rest = "" if word is None else f" {word}"
    if known.is_switch:
        option = known.option
        off = option is not None and (option.off or any(f"/--{flag}" in both for both in option.flags))
        return f"{known.name}={not off}{rest}"
    if word is None or _PROSE.fullmatch(word):
        return known.name + rest
    bare = word.strip("'")
    if known.is_number and re.fullmatch(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", bare):
        return f"{known.name}={bare}"
    if known.option is not None and isinstance(known.option.kind, Choice) and not _is_choice(known, bare):
        return known.name + rest
    return f'{known.name}="{bare}"'


def _is_choice(known: _Keyword, word: str) -> bool:
    assert known.option is not None and isinstance(known.option.kind, Choice)
    try:
        known.option.kind.read(word)
    except ValueError:
        return word.isupper()  # it stands for one
    return True


@cache
def _keywords() -> dict[str, _Keyword]:
    """Return the keyword for every flag that Python has one for, without its dashes."""
    found = {name.replace("_", "-"): _Keyword(name, is_switch=s, is_number=n) for name, s, n in _parameters()}
    found |= {"to": _Keyword("to"), "no-certificate": _Keyword("certify", _OFF, is_switch=True)}
    owners = [declared(Request), declared(Options), *(declared(w.options) for w in WRITERS)]
    mine: dict[str, _Keyword] = {}
    for options in (*owners, *(options_of(r) for r in READERS)):
        for name, option in options.items():
            kind = option.kind
            made = _Keyword(name, option, isinstance(kind, Switch), isinstance(kind, (Count, Number)))
            for flag in option.flags or (f"--{name.replace('_', '-')}",):
                for one in flag.split("/"):
                    mine.setdefault(one.removeprefix("--"), made)
    return found | mine


_OFF: Final = Option(Switch(), "", off=True)


def _parameters() -> list[tuple[str, bool, bool]]:
    """Return the keywords of the functions themselves: name, whether it is a switch, and a number."""
    import ckptconv

    functions: tuple[Any, ...] = tuple(
        getattr(ckptconv, name.replace("-", "_")) for name in _COMMANDS.split("|")
    )
    every = [p for f in functions for p in inspect.signature(f).parameters.values()]
    return [
        (p.name, p.annotation in ("bool", bool), p.annotation in ("float", "int", float, int))
        for p in every
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
