"""Read byte ranges of objects in few large requests, ahead of who asks, within a bound of memory."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ckptconv.places import remote

__all__ = ["RemoteReader"]

# What is asked for first of a file, so that neighbours less than that apart come with it; a file read on from
# there is asked for twice as much each time. Requests in flight share the memory with what has come.
_FIRST, _MOST, _LEAST = 1 << 20, 8 << 20, 64 << 10
_FLIGHTS = 8


class _Run:
    """A range of a file that has come or is on its way."""

    __slots__ = ("data", "end", "path", "start")

    def __init__(self, path: str, start: int, end: int, data: Future[bytes]) -> None:
        self.path, self.start, self.end, self.data = path, start, end, data


class RemoteReader:
    """Read from objects, from any thread.

    A file that is read in order is read ahead, one request further than where it is read; the size of its
    requests grows to 8 MiB, less where many files share the memory.

    Args:
        sizes: Bytes of each object.
        memory: Most bytes held; one request may be larger.
    """

    def __init__(self, sizes: Mapping[str, int], memory: int) -> None:
        self._sizes = dict(sizes)
        self._memory = max(memory, 4 * _LEAST)
        self._lock = threading.Lock()
        self._runs: dict[str, list[_Run]] = {}
        self._order: OrderedDict[int, _Run] = OrderedDict()  # by id, the longest unused first
        self._held = 0
        self._expected: deque[Mapping[str, Sequence[tuple[int, int]]]] = deque(maxlen=2)
        self._pool = ThreadPoolExecutor(_FLIGHTS, thread_name_prefix="read-ahead")
        self.requests = 0
        self.bytes = 0

    def close(self) -> None:
        """Drop what was read ahead, and what is still to be asked for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def expect(self, ranges: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """Read ahead only these ranges, and those that were said before: two files may be under way."""
        with self._lock:
            self._expected.append(ranges)

    def _limit(self, path: str, at: int) -> int:
        """Return how far it makes sense to read on from byte ``at``."""
        if not self._expected:
            return self._sizes[path]
        limit = at
        for ranges in self._expected:
            found = ranges.get(path, ())
            i = bisect_right(found, at, key=lambda r: r[0]) - 1
            if i >= 0:
                limit = max(limit, found[i][1])
        return limit

    def read(self, path: str, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from byte ``offset`` of an object as far as it goes; return how far.

        Raises:
            OSError: if the server keeps failing.
        """
        size = self._sizes.get(path)
        if size is None:
            from ckptconv.places.places import place

            size = self._sizes[path] = place(path).stat().st_size
        end = min(offset + len(buffer), size)
        at = offset
        while at < end:
            run = self._run(path, at, end, size)
            try:
                data = run.data.result()
            except BaseException:
                self._drop(run)
                raise
            piece = memoryview(data)[at - run.start : end - run.start]
            if not piece:
                break
            buffer[at - offset : at - offset + len(piece)] = piece
            at += len(piece)
        return max(0, at - offset)

    def _run(self, path: str, at: int, end: int, size: int) -> _Run:
        """Return a run that holds byte ``at``, asked for now if need be; ask for the next as well."""
        with self._lock:
            runs = self._runs.setdefault(path, [])
            found = next((r for r in runs if r.start <= at < r.end), None)
            if found is not None:
                self._order.move_to_end(id(found))
            else:
                before = next((r for r in runs if r.end == at), None)
                grown = 2 * (before.end - before.start) if before else _FIRST
                length = max(end - at, self._share(grown))
                ahead = max(end, min(at + length, self._limit(path, at)))
                stop = min(ahead, size, *(r.start for r in runs if r.start > at))
                found = self._ask(path, at, stop)
                if before is None:
                    return found
            following = found.end
            limit = min(size, self._limit(path, following))
            if following < limit and not any(r.start <= following < r.end for r in runs):
                length = self._share(2 * (found.end - found.start))
                stop = min(following + length, limit, *(r.start for r in runs if r.start > following))
                if self._held + stop - following <= self._memory or self._make_room(stop - following, found):
                    self._ask(path, following, stop)
            return found

    def _share(self, length: int) -> int:
        """Bound a request by what the files being read leave to each."""
        files = sum(1 for runs in self._runs.values() if runs) or 1
        return max(_LEAST, min(length, _MOST, self._memory // (2 * files)))

    def _ask(self, path: str, start: int, end: int) -> _Run:
        self._make_room(end - start, None)
        self.requests += 1
        self.bytes += end - start
        run = _Run(path, start, end, self._pool.submit(remote.fetch, path, start, end))
        self._runs[path].append(run)
        self._order[id(run)] = run
        self._held += end - start
        return run

    def _make_room(self, count: int, keep: _Run | None) -> bool:
        """Let go of the longest unused runs that have come, until ``count`` bytes more fit."""
        for run in list(self._order.values()):
            if self._held + count <= self._memory:
                break
            if run is not keep and run.data.done():
                self._forget(run)
        return self._held + count <= self._memory

    def _drop(self, run: _Run) -> None:
        with self._lock:
            if id(run) in self._order:
                self._forget(run)

    def _forget(self, run: _Run) -> None:
        del self._order[id(run)]
        self._runs[run.path].remove(run)
        self._held -= run.end - run.start
