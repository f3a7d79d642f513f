"""Keep a thread's working memory, so that no tile pays for fresh pages."""

from __future__ import annotations

import numpy as np

from ckptconv.engine.gather import Array

__all__ = ["Buffers"]


class Buffers:
    """Hand out arrays by purpose, for one thread; the same memory every time a purpose asks."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def take(self, purpose: str, nbytes: int) -> Array:
        """Return ``nbytes`` bytes of any content; what this purpose took before is reused."""
        found = self._arrays.get(purpose)
        if found is None or found.nbytes < nbytes:
            found = self._arrays[purpose] = np.empty(nbytes, np.uint8)
        return found[:nbytes]
