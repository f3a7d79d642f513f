"""Read blocks of files once for several readers that want parts of them at about the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

__all__ = ["SharedBlocks"]

_BLOCK = 128 << 10


class SharedBlocks:
    """Hold the blocks read last; a block that is being read is waited for, not read twice.

    Args:
        read: Fills a buffer from a byte of a file on; returns how many bytes there were.
        memory: Bytes to hold.
    """

    def __init__(self, read: Callable[[str, int, memoryview], int], memory: int) -> None:
        self._read, self._most = read, max(2, memory // _BLOCK)
        self._held: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read_into(self, path: str, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from byte ``offset`` of a file on as far as the file goes; return how far."""
        done = 0
        while done < len(buffer):
            index, at = divmod(offset + done, _BLOCK)
            data = memoryview(self._block(path, index))[at : at + len(buffer) - done]
            if not data:
                break
            buffer[done : done + len(data)] = data
            done += len(data)
        return done

    def _block(self, path: str, index: int) -> bytes:
        key = (path, index)
        with self._lock:
            found = self._held.get(key)
            mine = found is None
            if found is None:
                found = self._held[key] = Future()
                if len(self._held) > self._most:
                    self._held.popitem(last=False)
            else:
                self._held.move_to_end(key)
        if mine:
            try:
                block = bytearray(_BLOCK)
                found.set_result(bytes(block[: self._read(path, index * _BLOCK, memoryview(block))]))
            except BaseException as e:
                with self._lock:
                    self._held.pop(key, None)
                found.set_exception(e)
        return found.result()
