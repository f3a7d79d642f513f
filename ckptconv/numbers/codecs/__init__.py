"""Turn the codes and scales of quantised weights into values, one small module a kind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module

from ckptconv.errors import PlanError
from ckptconv.numbers.codecs.base import Array, BadCode, Codec, Params, Rect
from ckptconv.plugins import Registry

__all__ = ["CODECS", "Array", "BadCode", "Codec", "Params", "Rect", "codec"]

_OWN = ("scaled", "fp4", "packed", "gptq", "awq", "bnb")


def _own() -> Iterator[Codec]:
    for name in _OWN:
        yield import_module(f"ckptconv.numbers.codecs.{name}").CODEC


CODECS: Registry[Codec] = Registry("codecs", _own, lambda: Codec)
"""ckptconv's codecs, then those of installed plug-ins (entry point ``ckptconv.codecs``)."""


@cache
def codec(name: str) -> Codec:
    """Return a codec by its name.

    Raises:
        PlanError: if there is none: a plan of another machine may name a plug-in that this one has not.
    """
    found = CODECS.find(name)
    if found is None:
        raise PlanError(f"there is no codec {name!r}", hint="install the plug-in on every machine")
    return found
