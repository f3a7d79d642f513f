"""Build a command's flags from the options that its owners declare."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli.help import SETTINGS, HelpCommand, examples
from ckptconv.plans.options import SOURCE, Choice, Option, Switch, Texts, declared, flag_of
from ckptconv.records import dataclass

__all__ = [
    "Command",
    "Source",
    "Target",
    "flags",
    "of_readers",
    "of_writers",
    "owned",
    "pick",
    "sourced",
    "taking",
]

Source = Annotated[
    Path,
    typer.Argument(
        readable=False,
        metavar="SRC",
        help="The run's folder, the tag folder, or a file inside.",
        show_default=False,
    ),
]
Target = Annotated[
    Path, typer.Argument(readable=False, metavar="OUT", help="The folder to write.", show_default=False)
]

Flags = Mapping[str, Option]
"""Options by the name of the field they set."""


def owned(*owners: type) -> dict[str, Option]:
    """Return the options of several owners; one name is one flag, which takes what any of them does."""
    found: dict[str, Option] = {}
    for owner in owners:
        for name, option in declared(owner).items():
            found[name] = _both(found[name], option) if name in found else option
    return found


def _both(one: Option, other: Option) -> Option:
    """Return a flag of two owners."""
    kind = one.kind
    if isinstance(kind, Choice) and isinstance(other.kind, Choice):
        words = tuple(dict.fromkeys((*kind.words, *other.kind.words)))
        kind = replace(kind, words=words, others={**kind.others, **other.kind.others})
    return replace(one, kind=kind, common=one.common or other.common)


def of_readers(*names: str) -> dict[str, Option]:
    """Return what may be said about checkpoints of these producers, of all if none is named."""
    from ckptconv.readers.reader import Which
    from ckptconv.readers.registry import READERS

    return owned(Which, *(r.options for r in READERS.among(names)))


def of_writers(*names: str) -> dict[str, Option]:
    """Return what may be asked of these targets, of all if none is named."""
    from ckptconv.writers.registry import WRITERS

    return owned(*(w.options for w in WRITERS.among(names)))


def sourced(readers: Flags, writers: Flags) -> dict[str, Option]:
    """Return the flags about a source; where a target has one of the same name, it is ``--source-NAME``."""
    found = {n: o for n, o in readers.items() if n not in writers}
    for name, option in readers.items():
        if name in writers:
            bare = flag_of(name, option).removeprefix("--")
            both = isinstance(option.kind, Switch) and "/" in "".join(option.flags)
            flag = f"--source-{bare}/--no-source-{bare}" if both else f"--source-{bare}"
            found[SOURCE + name] = replace(option, flags=(flag,), common=False)
    return found


def pick(options: Flags, names: Iterable[str]) -> dict[str, Option]:
    """Return some of the flags, by field."""
    return {n: options[n] for n in names}


def flags(options: Flags, *, everything: bool = True) -> list[inspect.Parameter]:
    """Return options as parameters of a command; what is not given is None.

    Args:
        options: The options.
        everything: Whether help shows those too that few people use.
    """
    return [
        _parameter(name, option, hidden=not (everything or option.common)) for name, option in options.items()
    ]


def _parameter(name: str, option: Option, *, hidden: bool) -> inspect.Parameter:
    names = option.flags or (flag_of(name, option),)
    kind: Any = str
    if isinstance(option.kind, Switch):
        kind = bool
        # Without a second name typer would add one that switches off.
        names = tuple(names)
    elif isinstance(option.kind, Texts):
        kind = list[str]
    info = typer.Option(
        *names,
        metavar=option.kind.metavar,
        help=option.help,
        rich_help_panel=option.panel or None,
        show_default=False,
        hidden=hidden,
    )
    annotation = Annotated[Optional[kind], info]  # noqa: UP045  (typer reads it on Python 3.10 too)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@dataclass(frozen=True, slots=True)
class Command:
    """Describe a command, whose flags are built when it is asked for: that takes its owners' modules.

    Attributes:
        name: Its name.
        run: The function that carries it out; its docstring is the help.
        examples: Lines to paste, each with what it is for as a comment.
        groups: Returns its flags, by the keyword argument that receives what was given of a group as a dict.
    """

    name: str
    run: Callable[..., None]
    examples: tuple[str, ...]
    groups: Callable[[], Mapping[str, Flags]] = dict

    def add_to(self, app: typer.Typer, *, complete: bool, everything: bool = False) -> None:
        """Register the command; without its flags unless it is to be ``complete``.

        Args:
            app: The command line.
            complete: Whether this is the command that is run.
            everything: Whether its help shows all flags.
        """
        function = taking(self.run, self.groups(), everything=everything) if complete else _named(self.run)
        make = app.command(
            self.name, cls=HelpCommand, epilog=examples(self.examples), context_settings=SETTINGS
        )
        make(function)


def _named(run: Callable[..., None]) -> Callable[..., None]:
    """Return what shows a command in a list of commands."""

    def nothing() -> None: ...

    nothing.__doc__ = run.__doc__
    return nothing


def taking(
    command: Callable[..., None], groups: Mapping[str, Flags], *, everything: bool = True
) -> Callable[..., None]:
    """Give a function groups of flags.

    It receives each group as a dict of what was given, by the names of the options' fields, as the keyword
    argument of the group's name.
    """
    signature = inspect.signature(command, eval_str=True).parameters
    own = [p for n, p in signature.items() if n not in groups]
    extra = {group: flags(options, everything=everything) for group, options in groups.items()}

    @wraps(command)
    def wrapper(**values: Any) -> None:
        for group, parameters in extra.items():
            options = groups[group]
            given = {p.name: values.pop(p.name) for p in parameters}
            values[group] = {
                n: (not v if options[n].off else v) for n, v in given.items() if v not in (None, [])
            }
        command(**{name: _at_home(value) for name, value in values.items()})

    every = own + [p for parameters in extra.values() for p in parameters]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in every]
    wrapper.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in keyword}
    return wrapper


def _at_home(value: Any) -> Any:
    """Return a path with ``~`` for the user's folder, which shells leave in ``--opt=~/x``."""
    if isinstance(value, list):
        return [_at_home(v) for v in value]
    if not isinstance(value, Path) or not str(value).startswith("~"):
        return value
    try:
        return value.expanduser()
    except RuntimeError:  # there is no such user
        return value
