"""Find what can be plugged in, by name: readers, writers, families, dialects, containers, codecs, engines.

ckptconv's own come first and are loaded when they are asked for. Others come from entry points of installed
packages. One that does not load is a warning that names it, and the run goes on without it. One with the
name of ckptconv's own takes its place only if the environment variable ``CKPTCONV_REPLACE`` names it, as in
``CKPTCONV_REPLACE=readers:deepspeed,families:llama``.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["REPLACE", "Named", "PluginWarning", "Registry", "installed", "later", "within"]

REPLACE = "CKPTCONV_REPLACE"
"""The environment variable that says which of ckptconv's own are to be replaced."""


class PluginWarning(UserWarning):
    """An installed plug-in cannot be used."""


class Named(Protocol):
    """What can be plugged in: anything with a name."""

    @property
    def name(self) -> str:
        """The name users choose it by."""
        ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """List what there is of one kind.

    Args:
        kind: The kind, also the end of its entry-point group: ``readers`` for ``ckptconv.readers``.
        own: Where ckptconv's own are, ``module:NAME`` by their names, in the order in which they are asked;
            or yields them. A module is imported when its turn comes.
        of: Returns the class of such an object, for plug-ins to be checked.
    """

    def __init__(
        self, kind: str, own: Mapping[str, str] | Callable[[], Iterator[T]], of: Callable[[], type]
    ) -> None:
        self.kind = kind
        self._own, self._of = own, of
        self._foreign: dict[str, T] | None = None

    def __iter__(self) -> Iterator[T]:
        replaced = self._replaced()
        seen = set()
        for one in self._all_own():
            if one.name not in seen:
                seen.add(one.name)
                yield replaced.get(one.name, one)
        for name, one in self._plugged().items():
            if name not in seen:
                yield one

    def find(self, name: str) -> T | None:
        """Return the one of this name, None if there is none."""
        if isinstance(self._own, Mapping) and name in self._own:
            replaced: T | None = self._replaced().get(name)
            return replaced or cast("T", _at(self._own[name]))
        return next((one for one in self if one.name == name), None)

    def among(self, names: Sequence[str]) -> Iterator[T]:
        """Yield those of these names, all if none is given."""
        found = (self.find(name) for name in names)
        return (one for one in found if one is not None) if names else iter(self)

    @property
    def names(self) -> list[str]:
        """All names."""
        return [one.name for one in self]

    def _all_own(self) -> Iterator[T]:
        if not isinstance(self._own, Mapping):
            return self._own()
        return (cast("T", _at(home)) for home in self._own.values())

    def _replaced(self) -> dict[str, T]:
        """Return the plug-ins that take the place of one of ckptconv's own."""
        asked = [t.strip().partition(":") for t in os.environ.get(REPLACE, "").split(",")]
        names = [name for kind, _, name in asked if kind == self.kind]
        if not names:
            return {}
        found = self._plugged()
        for name in names:
            if name not in found:
                _warn(f"{REPLACE} names {self.kind}:{name}, but no installed plug-in has that name")
        return {name: found[name] for name in names if name in found}

    def _plugged(self) -> dict[str, T]:
        """Load the plug-ins, once; a broken one is warned of."""
        if self._foreign is None:
            self._foreign = {}
            for point in _entry_points(f"ckptconv.{self.kind}"):
                if (one := self._load(point)) is not None:
                    self._foreign.setdefault(one.name, one)
        return self._foreign

    def _load(self, point: EntryPoint) -> T | None:
        who = f"plug-in {point.name!r} of {point.dist.name if point.dist else 'a package'} ({point.group})"
        try:
            found: Any = point.load()
        except Exception as e:  # whatever a foreign module does when it is imported
            _warn(f"{who} does not load, and is left out: {type(e).__name__}: {e}")
            return None
        if not isinstance(found, self._of()):
            wanted = self._of().__name__
            _warn(f"{who} is a {type(found).__name__}, not a {wanted}, and is left out: {point.value}")
            return None
        return cast("T", found)


def later(home: str) -> Callable[..., Any]:
    """Return a function that imports the one at ``module:name`` when it is first called."""

    def imported(*args: Any, **keywords: Any) -> Any:
        return _at(home)(*args, **keywords)

    return imported


def _at(home: str) -> Any:
    """Import what stands at ``module:name``."""
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


def installed(kind: str) -> list[str]:
    """Return the names of installed plug-ins of a kind, without loading them."""
    return [point.name for point in _entry_points(f"ckptconv.{kind}")]


def _entry_points(group: str) -> Iterator[EntryPoint]:
    if _announced():
        yield from _all_entry_points().select(group=group)


@cache
def _all_entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points()


@cache
def _announced() -> bool:
    """Whether an installed package may announce a plug-in of any kind.

    To look through their files takes a fifth of what importlib.metadata takes, which is 15 ms in an
    environment of 150 packages.
    """
    return any(_may_announce(folder or ".") for folder in sys.path)


def _may_announce(folder: str) -> bool:
    """Whether a package in a folder of ``sys.path`` may announce one: what cannot be looked through may."""
    if not os.path.isdir(folder):
        return os.path.exists(folder)  # an archive, which importlib.metadata can read
    try:
        with os.scandir(folder) as packages:
            return any(
                p.name.endswith((".egg", ".egg-link"))
                or (p.name.endswith((".dist-info", ".egg-info")) and _has_group(p))
                for p in packages
            )
    except OSError:
        return True


def _has_group(package: os.DirEntry[str]) -> bool:
    try:
        with open(os.path.join(package.path, "entry_points.txt"), "rb") as file:
            return re.search(rb"\[\s*ckptconv\.", file.read()) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def _warn(text: str) -> None:
    warnings.warn(text, PluginWarning, stacklevel=3)


def within(package: str, of: type[T]) -> Iterator[T]:
    """Yield every object of a class that the modules of a package define, module by module.

    A file put into the package is found by itself. One module may import another's to build on it: each name
    comes once.
    """
    from pkgutil import iter_modules

    seen = set()
    for info in iter_modules(import_module(package).__path__):
        for value in vars(import_module(f"{package}.{info.name}")).values():
            if isinstance(value, of) and value.name not in seen:
                seen.add(value.name)
                yield value
