"""Turn the codes and scales of quantised weights into values, one small module a kind."""

from __future__ import annotations

from functools import cache
from typing import cast

from ckptconv.numbers.codecs import awq, bnb, fp4, gptq, packed, scaled
from ckptconv.numbers.codecs.base import Array, BadCode, Codec, Params, Rect

__all__ = ["Array", "BadCode", "Codec", "Params", "Rect", "codec"]

_OWN = (scaled, fp4, packed, gptq, awq, bnb)


@cache
def codec(name: str) -> Codec:
    """Return a codec by its name.

    Raises:
        KeyError: if there is none.
    """
    return {one.NAME: one for one in cast("tuple[Codec, ...]", _OWN)}[name]
