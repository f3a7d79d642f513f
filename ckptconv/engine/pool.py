"""Write the files of a plan on a few threads, block by block."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from ckptconv.engine.buffers import Buffers
from ckptconv.engine.events import FileDone, Listener, Progress
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.flush import WriteBehind
from ckptconv.engine.journal import Journal
from ckptconv.engine.options import DIGEST_BLOCK, Options, default_workers, tile_bytes
from ckptconv.engine.output import explain, interrupted, remove_empty
from ckptconv.graph.plan import OutFile, Plan
from ckptconv.storage import torchbin
from ckptconv.storage.files import SourceFiles, write_at

__all__ = ["Pool"]


@dataclass(slots=True)
class _Work:
    """A file being written: what is left of it and what is known about its parts."""

    file: OutFile
    filler: Filler
    fd: int
    blocks: int
    digests: list[bytes] = field(default_factory=list)
    crcs: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    left: int = 0


class Pool:
    """Hand out blocks to threads, and finish each file when its last block is written."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        options: Options,
        sources: SourceFiles,
        journal: Journal,
        tell: Listener,
    ) -> None:
        self._plan, self._folder, self._options = plan, folder, options
        self._sources, self._journal, self._tell = sources, journal, tell
        self._pairs = pairs_by_tensor(plan.relation)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._overflows = 0
        self._behind = WriteBehind()
        self._open: dict[str, int] = {}

    def run(self, files: list[OutFile]) -> int:
        """Write the files; return how many values overflowed."""
        jobs = self._jobs(files)
        count = self._options.workers or default_workers()
        threads = [threading.Thread(target=self._worker, args=(jobs,), daemon=True) for _ in range(count)]
        for t in threads:
            t.start()
        try:
            for t in threads:
                while t.is_alive():
                    t.join(0.1)
        except KeyboardInterrupt:
            self._stop.set()
            for t in threads:
                t.join()
            self._error = interrupted(self._folder)
        self._behind.close()
        for fd in self._open.values():
            os.close(fd)
        if self._error is not None:
            self._give_up(files)
            raise self._error
        return self._overflows

    def _jobs(self, files: list[OutFile]) -> Iterator[tuple[_Work, int]]:
        """Yield the blocks of all files in order, each file opened when its first block is due."""
        for file in files:
            path = self._folder / (file.name + ".part")
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            self._open[file.name] = fd
            os.ftruncate(fd, file.layout.size)
            blocks = max(1, -(-file.layout.size // DIGEST_BLOCK))
            work = _Work(
                file,
                Filler(self._plan, file, self._sources, self._pairs),
                fd,
                blocks,
                [b""] * blocks,
                {},
                blocks,
            )
            for block in range(blocks):
                yield work, block

    def _worker(self, jobs: Iterator[tuple[_Work, int]]) -> None:
        buffers = Buffers()
        try:
            while not self._stop.is_set():
                with self._lock:
                    job = next(jobs, None)
                if job is None:
                    return
                self._block(*job, buffers)
        except BaseException as e:
            with self._lock:
                if self._error is None:
                    self._error = explain(e, self._folder)
            self._stop.set()

    def _block(self, work: _Work, block: int, buffers: Buffers) -> None:
        lo = block * DIGEST_BLOCK
        hi = min(lo + DIGEST_BLOCK, work.file.layout.size)
        hasher, overflows, tile = xxhash.xxh3_64(), 0, tile_bytes(self._options)
        crcs: dict[tuple[int, int], tuple[int, int]] = {}
        for at in range(lo, hi, tile):
            if self._stop.is_set():
                return
            data, spans, over = work.filler.fill(at, min(at + tile, hi), buffers)
            overflows += over
            view = data.data
            if work.file.layout.needs_crc:  # sealing changes bytes in most blocks: they are digested then
                for tensor, a, b in spans:
                    crcs[tensor, at + a] = (zlib.crc32(view[a:b]), b - a)
            else:
                hasher.update(view)
            self._write(work, view, at)
        work.digests[block] = hasher.digest()
        self._behind.wrote(str(self._folder / (work.file.name + ".part")), hi - lo)
        self._tell(Progress(hi - lo))
        with self._lock:
            self._overflows += overflows
            work.crcs.update(crcs)
            work.left -= 1
            last = work.left == 0
        if last:
            self._finish(work)

    def _finish(self, work: _Work) -> None:
        """Seal a file whose data is complete, sync it, and enter it in the journal."""
        if work.file.layout.needs_crc:
            self._seal(work)
        os.fsync(work.fd)
        digest = xxhash.xxh3_128(b"".join(work.digests)).hexdigest()
        with self._lock:
            os.close(self._open.pop(work.file.name))
            self._journal.add(work.file.name, digest)
        self._tell(FileDone(work.file.name, work.file.layout.size, digest))

    def _seal(self, work: _Work) -> None:
        sums = [0] * len(work.file.layout.tensors)
        for (tensor, _), (crc, length) in sorted(work.crcs.items()):
            sums[tensor] = torchbin.crc32_combine(sums[tensor], crc, length)
        for at, data in torchbin.seal(work.file.layout, sums):
            self._write(work, data, at)
        for block in range(len(work.digests)):
            hasher = xxhash.xxh3_64()
            lo = block * DIGEST_BLOCK
            hi = min(lo + DIGEST_BLOCK, work.file.layout.size)
            for at in range(lo, hi, 1 << 20):
                hasher.update(os.pread(work.fd, min(1 << 20, hi - at), at))
            work.digests[block] = hasher.digest()

    def _write(self, work: _Work, data: memoryview | bytes, at: int) -> None:
        try:
            write_at(work.fd, data, at)
        except OSError as e:
            e.filename = str(self._folder / (work.file.name + ".part"))
            raise

    def _give_up(self, files: list[OutFile]) -> None:
        """Remove unfinished files; finished ones stay, unnamed, for ``--resume``."""
        for file in files:
            if file.name not in self._journal.done:
                path = self._folder / (file.name + ".part")
                path.unlink(missing_ok=True)
                remove_empty(path.parent, self._folder)
