"""Keep a thread's working memory, so that no tile pays for fresh pages."""

from __future__ import annotations

import numpy as np

from ckptconv.engine.gather import Array
from ckptconv.engine.rows import Rows
from ckptconv.places.direct import ALIGNMENT

__all__ = ["Buffers"]


class Buffers:
    """Hand out arrays by purpose, for one thread; the same memory every time a purpose asks.

    Attributes:
        rows: What was read last of tensors that several files share.
    """

    def __init__(self) -> None:
        self.rows = Rows()
        self._arrays: dict[str, Array] = {}

    def take(self, purpose: str, nbytes: int) -> Array:
        """Return ``nbytes`` bytes of any content; what this purpose took before is reused.

        They start at a multiple of `ALIGNMENT`, so that they can be written past the page cache.
        """
        found = self._arrays.get(purpose)
        if found is None or found.nbytes < nbytes:
            room = np.empty(nbytes + ALIGNMENT, np.uint8)
            found = self._arrays[purpose] = room[-room.ctypes.data % ALIGNMENT :][:nbytes]
        return found[:nbytes]
