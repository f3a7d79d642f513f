"""Load a large module when something is asked of it: what reads headers and prints asks numpy nothing."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any

__all__ = ["load_later"]


def load_later(name: str) -> None:
    """Let ``import NAME`` cost nothing from now on, until an attribute or a submodule is wanted.

    `importlib.util.LazyLoader` is no help: the second ``import`` of a module asks for its ``__spec__``.
    """
    if name in sys.modules or (spec := find_spec(name)) is None or spec.loader is None:
        return
    module = sys.modules[name] = module_from_spec(spec)
    del module.__path__  # so that the import of a submodule asks for it, too
    module.__class__ = _Later


class _Later(ModuleType):
    """A module that is not loaded yet."""

    _loading = RLock()

    def __getattr__(self, name: str) -> Any:
        with self._loading:
            spec = self.__spec__
            assert spec is not None
            assert spec.loader is not None
            if "__path__" not in vars(self):
                self.__path__ = spec.submodule_search_locations or []
                spec.loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]
            elif type(self) is _Later:  # what is being loaded looks whether it is there
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name)
        return getattr(self, name)
