"""Turn the codes and scales of quantised weights into values, one small module a kind."""

from __future__ import annotations

from functools import cache

from ckptconv.errors import PlanError
from ckptconv.numbers.codecs.base import Array, BadCode, Codec, Params, Rect
from ckptconv.plugins import Registry

__all__ = ["CODECS", "Array", "BadCode", "Codec", "Params", "Rect", "codec"]

_OWN = {
    name: f"ckptconv.numbers.codecs.{name}:CODEC"
    for name in ("scaled", "fp4", "packed", "gptq", "awq", "bnb")
}

CODECS: Registry[Codec] = Registry("codecs", _OWN, lambda: Codec)
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
