"""Keep a thread's working memory, so that no tile pays for fresh pages."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from ckptconv.engine.gather import Array
from ckptconv.engine.rows import Rows
from ckptconv.places.direct import MEMORY_ALIGNMENT

__all__ = ["Buffers"]

# Bytes of a header more in the output than in the source, and what is read goes a few bytes further into its
# page than it comes from: AMD's Zen 4 copies that at 3 GB/s a core, and at 14 from where it starts later.
_START = MEMORY_ALIGNMENT


class Buffers:
    """Hand out memory by purpose, for one thread; the same every time a purpose asks.

    Attributes:
        rows: What was read last of tensors that several files share.
    """

    def __init__(self) -> None:
        self.rows = Rows()
        self._rooms: dict[str, memoryview] = {}

    def take(self, purpose: str, nbytes: int) -> Array:
        """Return ``nbytes`` bytes of any content as an array; see `room`."""
        return np.frombuffer(self.room(purpose, nbytes), np.uint8)

    def room(self, purpose: str, nbytes: int) -> memoryview:
        """Return ``nbytes`` bytes of any content; what this purpose took before is reused.

        They start at a multiple of `MEMORY_ALIGNMENT`, so that they can be written past the page cache.
        """
        found = self._rooms.get(purpose)
        if found is None or len(found) < nbytes:
            pages = mmap.mmap(-1, nbytes + _START, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # a kernel without them
                    pages.madvise(mmap.MADV_HUGEPAGE)
            found = self._rooms[purpose] = memoryview(pages)[_START:]
        return found[:nbytes]
