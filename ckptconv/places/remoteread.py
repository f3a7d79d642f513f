"""Read byte ranges of objects in few large requests, ahead of who asks, within a bound of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
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

    What is to be read is best asked for. Else requests of a file that is read in order grow to 8 MiB, less
    where many files share the memory; if nothing was ever asked for, it is read ahead, one request further.

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
        self._asked: dict[str, list[_Run]] = {}
        self._is_told = False
        self._pool = ThreadPoolExecutor(_FLIGHTS, thread_name_prefix="read-ahead")
        self.requests = 0
        self.bytes = 0

    def close(self) -> None:
        """Drop what was read ahead, and what is still to be asked for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, ranges: Iterable[tuple[str, int, int]]) -> Sequence[object]:
        """Ask for ranges (object, first byte, one past the last); each is held until it is let go."""
        runs = []
        with self._lock:
            self._is_told = True
            for path, start, end in ranges:
                run = self._request(path, start, end)
                self._asked.setdefault(path, []).append(run)
                runs.append(run)
        return runs

    def let_go(self, asked: Sequence[object]) -> None:
        """Forget ranges that were asked for."""
        with self._lock:
            for run in asked:
                assert isinstance(run, _Run)
                self._asked[run.path].remove(run)
                self._held -= run.end - run.start

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
            for run in self._asked.get(path, ()):
                if run.start <= at < run.end:
                    return run
            runs = self._runs.setdefault(path, [])
            found = next((r for r in runs if r.start <= at < r.end), None)
            if found is not None:
                self._order.move_to_end(id(found))
            else:
                before = next((r for r in runs if r.end == at), None)
                grown = 2 * (before.end - before.start) if before else _FIRST
                length = max(end - at, self._share(grown))
                later = (r.start for r in (*runs, *self._asked.get(path, ())) if r.start > at)
                stop = min(at + length, size, *later)
                found = self._ask(path, at, stop)
                if before is None:
                    return found
            following = found.end
            if following < size and not self._is_told and not any(r.start <= following < r.end for r in runs):
                length = self._share(2 * (found.end - found.start))
                stop = min(following + length, size, *(r.start for r in runs if r.start > following))
                if self._held + stop - following <= self._memory or self._make_room(stop - following, found):
                    self._ask(path, following, stop)
            return found

    def _share(self, length: int) -> int:
        """Bound a request by what the files being read leave to each."""
        files = sum(1 for runs in self._runs.values() if runs) or 1
        return max(_LEAST, min(length, _MOST, self._memory // (2 * files)))

    def _ask(self, path: str, start: int, end: int) -> _Run:
        self._make_room(end - start, None)
        run = self._request(path, start, end)
        self._runs[path].append(run)
        self._order[id(run)] = run
        return run

    def _request(self, path: str, start: int, end: int) -> _Run:
        self.requests += 1
        self.bytes += end - start
        self._held += end - start
        return _Run(path, start, end, self._pool.submit(remote.fetch, path, start, end))

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
