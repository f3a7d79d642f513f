"""Convert several saves of a run, each into a folder of its own, or every new one of a run that goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from ckptconv.cli.console import remarks
from ckptconv.cli.failures import described, tell
from ckptconv.cli.printing import print_json
from ckptconv.errors import CkptconvError, InterruptedRunError, UsageError
from ckptconv.plans.options import Option, Switch, Text

if TYPE_CHECKING:
    from ckptconv.api.ls import Saved

__all__ = ["MANY", "convert_each"]

_WHICH = "Which steps"
MANY: Final = {
    "steps": Option(
        Text("STEPS"),
        "Several, into OUT/step-N: all, newest, last:5, 9,20.",
        panel=_WHICH,
        common=True,
    ),
    "watch": Option(
        Switch(),
        "Convert each new step when whole, until Ctrl-C.",
        panel=_WHICH,
        common=True,
    ),
}
"""The flags; who has neither converts one save, into OUT itself."""

_POLL: Final = 3.0  # seconds
_MIXED: Final = 1

Convert = Callable[..., None]
"""Convert a save: its name, its folder, and by keywords ``resume``, ``label`` and ``emit``."""


def convert_each(
    convert: Convert,
    source: Path,
    out: Path,
    many: Mapping[str, Any],
    *,
    step: object,
    resume: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Convert saves one after the other; one that fails does not stop the rest.

    Raises:
        UsageError: if one step is asked for as well, or there is none of those that are named.
        Exit: with the exit code of the failures: theirs if it is the same for all, else 1.
    """
    from ckptconv.api.ls import choose

    if step is not None:
        raise UsageError("--step is one step, --steps and --watch are several", hint="give one of the two")
    watch = bool(many.get("watch"))
    each = _Each(convert, out, json=json, quiet=quiet, at_once=watch)
    which = many.get("steps")
    if which is not None or not watch:
        for save in choose(source, str(which)):
            each.convert(save, resume=resume)
    if watch:
        each.watch(source, since=which is not None)
    each.end()


class _Each:
    """Convert saves, and remember how that went."""

    def __init__(self, convert: Convert, out: Path, *, json: bool, quiet: bool, at_once: bool) -> None:
        self._convert, self._out = convert, out
        self._json, self._quiet, self._at_once = json, quiet, at_once
        self._found: list[dict[str, Any]] = []
        self._codes: list[int] = []

    def convert(self, save: Saved, *, resume: bool) -> bool:
        """Convert a save into its folder; return whether that was done."""
        folder = self._out / save.folder_name
        entry: dict[str, Any] = {"step": save.step, "name": save.name, "out": str(folder)}
        if not (self._quiet or self._json):
            remarks().print(f"{save.folder_name}: {save.path} -> {folder}", markup=False, style="dim")
        code = 0
        try:
            if save.lacking is not None:
                raise CkptconvError(
                    f"{save.name} is not complete: {save.lacking}",
                    where=save.path,
                    hint="wait for it, or leave it out with --steps",
                )
            self._convert(save.name, folder, resume=resume, label=f"{save.folder_name}: ", emit=entry.update)
        except (InterruptedRunError, UsageError, typer.Exit):
            raise
        except Exception as e:
            code = tell(e, as_json=False)
            entry |= described(e, code)
            self._codes.append(code)
        if self._json:
            print_json(entry, indent=None) if self._at_once else self._found.append(entry)
        return code == 0

    def watch(self, source: Path, *, since: bool) -> None:
        """Convert what becomes whole, until Ctrl-C.

        Args:
            source: The run's folder.
            since: Whether only what is whole after the first look is meant: the rest was chosen by name.
        """
        from ckptconv.api.watched import Watched

        watched = Watched(source)
        if since:
            watched.pass_over()
        if not (self._quiet or self._json):
            there = "" if source.exists() else f", once {source} is there"
            remarks().print(f"watching for new steps{there}; Ctrl-C ends it", markup=False, style="dim")
        while True:
            try:
                for save in watched.ready():
                    folder = self._out / save.folder_name
                    begun = folder.is_dir() and any(folder.iterdir())
                    if begun and not watched.is_interrupted(folder):
                        watched.done(save)  # by an earlier watch
                    elif self.convert(save, resume=begun):
                        watched.done(save)
                    else:
                        watched.failed(save)
                time.sleep(_POLL)
            except KeyboardInterrupt:
                return

    def end(self) -> None:
        """Print what is to be printed at the end, and leave with the exit code of the failures."""
        if self._json and not self._at_once:
            print_json({"steps": self._found})
        if self._codes:
            raise typer.Exit(self._codes[0] if len(set(self._codes)) == 1 else _MIXED)
