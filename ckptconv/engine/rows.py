"""Hold what a thread has read last of tensors that several files want parts of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Set

import numpy as np

from ckptconv.numbers.codecs import Array

__all__ = ["Rows"]

_ALIGNMENT = 64
_NOTHING: frozenset[str] = frozenset()
_Range = tuple[str, int, int]


class Rows:
    """Hold ranges of elements in memory that is used over and over; for one thread."""

    def __init__(self) -> None:
        self._room: Array | None = None
        self._most = self._end = 0
        self._shared: Set[str] = _NOTHING
        self._held: dict[_Range, tuple[int, int]] = {}
        self._order: deque[_Range] = deque()  # as they lie in the room, the oldest first

    def serve(self, shared: Set[str], nbytes: int) -> None:
        """Hold up to so many bytes of these tensors from now on; of no tensor, nothing."""
        nbytes = nbytes if shared else 0
        if shared is self._shared and nbytes == self._most:
            return
        self._held.clear()
        self._order.clear()
        self._shared, self._most, self._end = shared, nbytes, 0
        if nbytes and (self._room is None or self._room.nbytes < nbytes):
            self._room = np.empty(nbytes, np.uint8)

    def room_for(self, tensor: str) -> int:
        """Return how many bytes of a tensor may be asked for at once."""
        return self._most if tensor in self._shared else 0

    def get(self, tensor: str, lo: int, hi: int, nbytes: int, read: Callable[[Array], None]) -> Array:
        """Return elements ``lo`` up to ``hi`` of a tensor, valid until the next call.

        Args:
            tensor: Its name.
            lo: First element.
            hi: One past the last.
            nbytes: Their size; at most what `room_for` says.
            read: Fills an array with them, if they are not held.
        """
        assert self._room is not None
        key = (tensor, lo, hi)
        if (found := self._held.get(key)) is not None:
            return self._room[slice(*found)]
        at = self._end
        if at + nbytes > self._most:  # what lies behind is older than all at the start of the room
            self._let_go(at, self._most)
            at = 0
        end = at + nbytes
        self._let_go(at, end)
        out = self._room[at:end]
        read(out)
        self._held[key] = (at, end)
        self._order.append(key)
        self._end = -(-end // _ALIGNMENT) * _ALIGNMENT
        return out

    def _let_go(self, lo: int, hi: int) -> None:
        """Forget the oldest ranges, which lie between bytes ``lo`` and ``hi`` of the room."""
        while self._order:
            a, b = self._held[self._order[0]]
            if b <= lo or a >= hi:
                return
            del self._held[self._order.popleft()]
