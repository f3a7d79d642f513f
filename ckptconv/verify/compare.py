"""Compute a plan's bytes again and compare them with an output's, tile by tile on a few threads."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import field

import numpy as np
import xxhash

from ckptconv.containers.base import Placed
from ckptconv.dtypes import numpy_dtype
from ckptconv.engine.abreast import HELD, Group, abreast, grouped, tile_abreast
from ckptconv.engine.ahead import Ahead, Range, Turn
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.events import FileDone, Listener, Progress, Started
from ckptconv.engine.fill import Filler, pairs_by_tensor, window_of
from ckptconv.engine.gather import Array, raw_dtype
from ckptconv.engine.options import Options, default_workers, tile_bytes
from ckptconv.engine.reads import Reads
from ckptconv.engine.threads import on_threads
from ckptconv.errors import MismatchError
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.records import dataclass
from ckptconv.relations import Drop, Pair, restrict
from ckptconv.verify.replicas import Finder
from ckptconv.verify.result import FileDigest, Mismatch, Place
from ckptconv.verify.tally import Tally

__all__ = ["Comparer"]


@dataclass(slots=True)
class _Work:
    """A file being compared; its digests take its bytes in order."""

    file: OutFile
    filler: Filler
    digests: bool
    sha256: hashlib._Hash | None
    xxh3: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)
    at: int = 0


# A file, a byte of it, and one past the last.
_Tile = tuple[_Work, int, int]


@dataclass(frozen=True, slots=True)
class _Job:
    """Tiles of files that are compared abreast, and what of the source these share."""

    number: int
    tiles: list[_Tile]
    shared: set[str]


class Comparer:
    """Compare the files of a plan with those that lie under their names.

    Args:
        plan: The plan; its files' names are paths.
        sources: The source's files.
        there: The output's files; None to read the source and compare its replicas alone.
        options: Threads and memory.
        tell: Told of progress.
        padding: Elements of the output that stand for nothing.
        names: What to call tensors.
        digests: Whether the output's files are digested on the way.
        sha256: Whether that is done with SHA-256 as well, which takes longer than reading.
    """

    def __init__(
        self,
        plan: Plan,
        sources: SourceFiles,
        there: SourceFiles | None,
        options: Options,
        tell: Listener,
        *,
        padding: Mapping[str, tuple[Drop, ...]] | None = None,
        names: Mapping[str, str] | None = None,
        digests: bool = False,
        sha256: bool = False,
    ) -> None:
        self._plan, self._sources, self._there = plan, sources, there
        self._tell, self._padding = tell, padding or {}
        self._digests, self._sha256 = digests, sha256
        self._names = names or {}
        self._pairs = pairs_by_tensor(plan.relation)
        self._tile = tile_bytes(Options(workers=options.workers, max_memory=options.max_memory * 6 // 7))
        self._workers = options.workers or default_workers()
        self._stop = threading.Event()
        self._turn = threading.Condition()
        self._tally = Tally()
        self._finder = Finder(plan, sources, self._pairs, self._tally)
        self._groups = grouped(plan, range(len(plan.files)), self._pairs)
        self._first = {f.name: n for n, f in reversed(list(enumerate(plan.files)))}
        self._ahead = [
            Ahead(self._turns(there=files is there), files, self._stop)
            for files in (sources, there)
            if files is not None and files.is_remote
        ]
        self.files: dict[str, FileDigest] = {}

    def run(self) -> list[Mismatch]:
        """Compare everything; return what differs, in the order of the plan.

        Raises:
            InputChangedError: if a file changed meanwhile.
        """
        self._tell(Started(sum(f.layout.size for f in self._plan.files), 0))
        on_threads(
            self._jobs(),
            self._one,
            count=self._workers,
            memory=Buffers,
            stop=self._stop,
            stopped=self._wake,
        )
        order = {t.name: i for i, t in enumerate(t for f in self._plan.files for t in f.layout.tensors)}
        return sorted(self._tally.found(), key=lambda m: order.get(m.tensor, -1))

    def _jobs(self) -> Iterator[_Job]:
        """Yield tiles that cut no element, file by file; files that share parts of the source go abreast."""
        number = 0
        for group in self._groups:
            shared = group.shared if len(group.files) > 1 else set()
            for tiles in abreast([self._tiles(n, self._tile_of(group)) for n in group.files]):
                yield _Job(number, tiles, shared)
                number += 1

    def _turns(self, *, there: bool) -> Iterator[tuple[Turn, list[Range]]]:
        """Yield what each job reads: of the output, or of the source."""
        number, reads = 0, Reads(self._plan, self._pairs)
        for group in self._groups:
            shared = group.shared if len(group.files) > 1 else set()
            spans = [self._spans(n, self._tile_of(group), lambda gap: None) for n in group.files]
            for tiles in abreast(spans):
                if there:
                    ranges = [(self._plan.files[n].name, lo, hi) for n, lo, hi in tiles]
                else:
                    ranges = [r for tile in tiles for r in reads.of(*tile, shared, HELD * self._tile)]
                yield (number, 0), ranges
                number += 1

    def _tile_of(self, group: Group) -> int:
        return tile_abreast(self._tile, len(group.files), casts=bool(self._plan.casts))

    def _tiles(self, number: int, tile: int) -> Iterator[_Tile]:
        file = self._plan.files[number]
        filler = Filler(self._plan, file, self._sources, self._pairs)
        work = _Work(file, filler, self._is_digested(number), hashlib.sha256() if self._sha256 else None)
        for _, lo, hi in self._spans(number, tile, lambda gap: self._tell(Progress(gap))):
            yield work, lo, hi
        if file.layout.size == 0 and work.digests:
            self._digested(work)

    def _is_digested(self, number: int) -> bool:
        """Whether a file is digested: a file on disk may be several of the plan's."""
        return self._digests and self._first[self._plan.files[number].name] == number

    def _spans(self, number: int, tile: int, skip: Callable[[int], None]) -> Iterator[tuple[int, int, int]]:
        """Yield a file's number, and the first byte and the end of each tile; tell of bytes left out."""
        file, digests = self._plan.files[number], self._is_digested(number)
        offsets = [t.offset for t in file.layout.tensors]
        lo, size = 0, file.layout.size
        while lo < size:
            if not digests and (gap := _gap(offsets, file, lo)):
                skip(gap)
                lo += gap
                continue
            hi = min(lo + tile, size)
            if (i := bisect_right(offsets, hi) - 1) >= 0:
                tensor = file.layout.tensors[i]
                if tensor.offset < hi < tensor.offset + tensor.nbytes:
                    hi -= (hi - tensor.offset) % tensor.dtype.itemsize
            yield number, lo, hi
            lo = hi

    def _one(self, job: _Job, buffers: Buffers) -> None:
        buffers.rows.serve(job.shared, HELD * self._tile)
        with ExitStack() as stack:
            for ahead in self._ahead:
                stack.enter_context(ahead.turn((job.number, 0)))
            for work, lo, hi in job.tiles:
                if self._stop.is_set():
                    return
                self._compare(work, lo, hi, buffers)
                self._tell(Progress(hi - lo))

    def _wake(self) -> None:
        """Wake what waits for its turn."""
        with self._turn:
            self._turn.notify_all()

    def _compare(self, work: _Work, lo: int, hi: int, buffers: Buffers) -> None:
        theirs = None
        if self._there is not None:
            theirs = buffers.take("theirs", hi - lo)
            self._there.read_into(work.file.name, lo, theirs.data)
            if work.digests:
                self._digest(work, lo, hi, theirs)
        try:
            ours, spans, _ = work.filler.fill(lo, hi, buffers)
        except MismatchError:
            spans_of = [
                (t, max(lo, t.offset), min(hi, t.offset + t.nbytes)) for t in work.file.layout.tensors
            ]
            held = [(t, a, b) for t, a, b in spans_of if a < b]
            if not self._finder.find(held):
                raise
            ours, spans, _ = Filler(self._plan, work.file, self._sources, self._finder.single).fill(
                lo, hi, buffers
            )
        if theirs is None:
            return
        for number, a, b in spans:
            tensor = work.file.layout.tensors[number]
            if not _equal(ours[a:b], theirs[a:b]):
                self._differ(work, tensor, lo + a, ours[a:b], theirs[a:b])

    def _differ(self, work: _Work, tensor: Placed, at: int, ours: Array, theirs: Array) -> None:
        """Take note of what differs between the bytes of a tensor from byte ``at`` of the file on."""
        lo = (at - tensor.offset) // tensor.dtype.itemsize
        raw = raw_dtype(tensor.dtype.itemsize)
        wanted, found = np.frombuffer(ours.tobytes(), raw), np.frombuffer(theirs.tobytes(), raw)
        differ = wanted != found
        for drop in self._padding.get(tensor.name, ()):
            for piece in restrict(Pair(drop.box, drop.box), lo, lo + wanted.size):
                window_of(differ, piece, lo)[...] = False
        where = np.flatnonzero(differ)
        if not where.size:
            return
        first = lo + int(where[0])
        kind = numpy_dtype(tensor.dtype)
        self._tally.add(
            ("value", tensor.name, work.file.name),
            first,
            where,
            wanted.view(kind),
            found.view(kind),
            lambda count: Mismatch(
                "value",
                tensor.name,
                f"{count} of {tensor.nbytes // tensor.dtype.itemsize} elements differ"
                + (f" (of {self._names[tensor.name]})" if tensor.name in self._names else ""),
                tuple(int(i) for i in np.unravel_index(first, tensor.shape or (1,)))[: len(tensor.shape)],
                source=self._finder.source_of(tensor.name, first),
                output=Place(tensor.name, work.file.name, tensor.offset + first * tensor.dtype.itemsize),
                of=self._names.get(tensor.name, ""),
            ),
        )

    def _digest(self, work: _Work, lo: int, hi: int, data: Array) -> None:
        """Add a tile to its file's digests when it is its turn."""
        with self._turn:
            self._turn.wait_for(lambda: work.at == lo or self._stop.is_set())
        if self._stop.is_set():
            return
        if work.sha256 is not None:
            work.sha256.update(data.data)
        work.xxh3.update(data.data)
        with self._turn:
            work.at = hi
            self._turn.notify_all()
        if hi == work.file.layout.size:
            self._digested(work)

    def _digested(self, work: _Work) -> None:
        size = work.file.layout.size
        sha256 = work.sha256.hexdigest() if work.sha256 is not None else None
        digest = FileDigest(size, work.xxh3.hexdigest(), sha256)
        self.files[work.file.name] = digest
        self._tell(FileDone(work.file.name, size, digest.xxh3))


def _equal(ours: Array, theirs: Array) -> bool:
    """Compare bytes, eight at a time where both lie so."""
    if not (ours.nbytes | ours.ctypes.data | theirs.ctypes.data) % 8:
        return bool(np.array_equal(ours.view(np.uint64), theirs.view(np.uint64)))
    return bool(np.array_equal(ours, theirs))


def _gap(offsets: Sequence[int], file: OutFile, lo: int) -> int:
    """Return how many bytes from ``lo`` on are of no tensor."""
    i = bisect_right(offsets, lo)
    if i and lo < offsets[i - 1] + file.layout.tensors[i - 1].nbytes:
        return 0
    return (offsets[i] if i < len(offsets) else file.layout.size) - lo
