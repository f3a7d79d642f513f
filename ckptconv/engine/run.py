"""Carry out a plan: fill its files tile by tile on a few threads, then give them their names."""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from ckptconv.engine.events import FileDone, Listener, Progress, Started, Stored
from ckptconv.engine.fill import Filler
from ckptconv.engine.journal import JOURNAL, Journal
from ckptconv.errors import CkptconvError, InterruptedRunError, OutputError
from ckptconv.graph.plan import OutFile, Plan
from ckptconv.storage import torchbin
from ckptconv.storage.files import SourceFiles, write_at

__all__ = ["DEFAULT_MEMORY", "DIGEST_BLOCK", "Options", "Report", "default_workers", "run", "tile_bytes"]

DIGEST_BLOCK = 4 << 20
"""Bytes a digest covers; the unit of work of a thread. A file's digest is made of its blocks' digests."""

DEFAULT_MEMORY = 64 << 20
_BUFFERS = (
    6  # tile, its source before a cast, scratch of a strided read and of a cast: at most this many tiles
)


@dataclass(frozen=True, slots=True)
class Options:
    """Say how to run a plan.

    Attributes:
        workers: Threads that read, cast and write.
        max_memory: Bytes all buffers together may take.
        resume: Go on with what an interrupted run of the same plan finished.
        overwrite: Replace a model that is in the output folder.
    """

    workers: int = 0
    max_memory: int = DEFAULT_MEMORY
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Say what a run wrote.

    Attributes:
        folder: The output folder.
        files: Digest of each weight file: XXH3-128 over the XXH3-64 digests of its 4 MiB blocks.
        bytes_out: Bytes of the weight files.
        resumed: Bytes of them that an earlier run had written.
        overflows: Values that became infinite in a cast to float16.
    """

    folder: str
    files: dict[str, str]
    bytes_out: int
    resumed: int
    overflows: int


def default_workers() -> int:
    """Return the number of threads used unless told otherwise: one a core, at most 8."""
    return max(
        1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    )


def tile_bytes(options: Options) -> int:
    """Return how many bytes of output a thread makes at a time under the memory limit."""
    workers = options.workers or default_workers()
    tile = options.max_memory // (workers * _BUFFERS)
    return max(1 << 14, min(DIGEST_BLOCK, 1 << (tile.bit_length() - 1)))


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


def run(plan: Plan, folder: Path, options: Options, listen: Listener | None = None) -> Report:
    """Write the plan's files into ``folder``.

    Every file is written as ``NAME.part``, synced, and renamed only when all are whole, replicas have proved
    equal and no input has changed; ``config.json`` and the index come last.

    Raises:
        OutputError: if the folder is in use, not empty, or full.
        MismatchError: if replicas differ.
        InputChangedError: if a source file changed meanwhile.
        InterruptedRunError: on Ctrl-C; what is whole is kept for ``resume``.
    """
    tell = listen or (lambda event: None)
    _prepare(plan, folder, options)
    digest = plan.digest()
    with Journal(folder, digest, resume=options.resume) as journal, SourceFiles(plan.inputs) as sources:
        done = {
            f.name for f in plan.files if f.name in journal.done and _size(folder, f.name) == f.layout.size
        }
        resumed = sum(f.layout.size for f in plan.files if f.name in done)
        _check_space(plan, folder, resumed)
        tell(Started(plan.bytes_out, resumed))
        pool = _Pool(plan, folder, options, sources, journal, tell)
        overflows = pool.run([f for f in plan.files if f.name not in done])
        sources.check()
        _commit(plan, folder, options)
        files = {f.name: journal.done[f.name] for f in plan.files}
        journal.remove()
    tell(Stored(str(folder)))
    return Report(str(folder), files, plan.bytes_out, resumed, overflows)


class _Pool:
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
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._overflows = 0
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
            self._error = InterruptedRunError(
                "interrupted; no file has its final name yet",
                where=self._folder,
                hint="run again with --resume",
            )
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
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            self._open[file.name] = fd
            os.ftruncate(fd, file.layout.size)
            blocks = max(1, -(-file.layout.size // DIGEST_BLOCK))
            work = _Work(
                file, Filler(self._plan, file, self._sources), fd, blocks, [b""] * blocks, {}, blocks
            )
            for block in range(blocks):
                yield work, block

    def _worker(self, jobs: Iterator[tuple[_Work, int]]) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    job = next(jobs, None)
                if job is None:
                    return
                self._block(*job)
        except BaseException as e:
            with self._lock:
                if self._error is None:
                    self._error = _explain(e, self._folder)
            self._stop.set()

    def _block(self, work: _Work, block: int) -> None:
        lo = block * DIGEST_BLOCK
        hi = min(lo + DIGEST_BLOCK, work.file.layout.size)
        hasher, overflows, tile = xxhash.xxh3_64(), 0, tile_bytes(self._options)
        crcs: dict[tuple[int, int], tuple[int, int]] = {}
        for at in range(lo, hi, tile):
            if self._stop.is_set():
                return
            data, spans, over = work.filler.fill(at, min(at + tile, hi))
            overflows += over
            view = memoryview(data)
            if work.file.layout.needs_crc:
                for tensor, a, b in spans:
                    crcs[tensor, at + a] = (zlib.crc32(view[a:b]), b - a)
            hasher.update(view)
            write_at(work.fd, view, at)
        work.digests[block] = hasher.digest()
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
        touched = set()
        for at, data in torchbin.seal(work.file.layout, sums):
            write_at(work.fd, data, at)
            touched.update(range(at // DIGEST_BLOCK, (at + max(len(data), 1) - 1) // DIGEST_BLOCK + 1))
        for block in touched:
            hasher = xxhash.xxh3_64()
            lo = block * DIGEST_BLOCK
            hi = min(lo + DIGEST_BLOCK, work.file.layout.size)
            for at in range(lo, hi, 1 << 20):
                hasher.update(os.pread(work.fd, min(1 << 20, hi - at), at))
            work.digests[block] = hasher.digest()

    def _give_up(self, files: list[OutFile]) -> None:
        """Remove unfinished files; finished ones stay, unnamed, for ``--resume``."""
        for file in files:
            if file.name not in self._journal.done:
                (self._folder / (file.name + ".part")).unlink(missing_ok=True)
        if not self._journal.done and not self._journal.resumed:
            self._journal.remove()


def _explain(error: BaseException, folder: Path) -> BaseException:
    """Turn an operating system's error into one that says what to do."""
    if isinstance(error, CkptconvError) or not isinstance(error, OSError):
        return error
    where = error.filename or folder
    return OutputError(
        f"{error.strerror or error}",
        where=where,
        hint="free space or raise the limit, then run again with --resume; no file has its final name yet",
    )


def _size(folder: Path, name: str) -> int:
    try:
        return (folder / (name + ".part")).stat().st_size
    except FileNotFoundError:
        return -1


def _prepare(plan: Plan, folder: Path, options: Options) -> None:
    """Create the folder, or check that it may be written into."""
    if folder.exists() and not folder.is_dir():
        raise OutputError("the output is a file, not a folder", where=folder)
    inputs = {os.path.realpath(i.path) for i in plan.inputs}
    clash = [n for n in _names(plan) if os.path.realpath(folder / n) in inputs]
    if clash:
        raise OutputError(
            f"the output would replace an input: {clash[0]}", where=folder, hint="choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot create the folder: {e.strerror}", where=folder) from e
    leftovers = {JOURNAL, *(n + ".part" for n in _names(plan))}
    others = [p.name for p in folder.iterdir() if p.name not in leftovers]
    if others and not options.overwrite:
        shown = ", ".join(sorted(others)[:5])
        raise OutputError(
            f"the output folder is not empty ({shown})",
            where=folder,
            hint="choose another folder, or give --overwrite to replace the model in it",
        )
    unfinished = (folder / JOURNAL).exists() and any(
        (folder / (f.name + ".part")).exists() for f in plan.files
    )
    if unfinished and not options.resume and not options.overwrite:
        raise OutputError(
            "the folder holds an interrupted run",
            where=folder,
            hint="give --resume to go on with it, or --overwrite to start again",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError("the folder cannot be written to", where=folder)


def _names(plan: Plan) -> list[str]:
    return [f.name for f in plan.files] + [a.name for a in plan.assets]


def _check_space(plan: Plan, folder: Path, resumed: int) -> None:
    need = plan.bytes_out - resumed + sum(len(a.content) for a in plan.assets)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OutputError(
            f"{need} bytes are to be written, but only {free} are free",
            where=folder,
            hint="free space, choose another folder, or write fewer bytes with --dtype bfloat16",
        )


_STALE = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json", "config.json")


def _commit(plan: Plan, folder: Path, options: Options) -> None:
    """Give every file its name: weights first, then assets, the index and the config last."""
    if options.overwrite:
        for pattern in reversed(_STALE):  # the old model stops looking whole before it is taken apart
            for path in folder.glob(pattern):
                path.unlink()
    try:
        for asset in plan.assets:
            path = folder / (asset.name + ".part")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as f:
                f.write(asset.content)
                f.flush()
                os.fsync(f.fileno())
        names = [f.name for f in plan.files] + sorted((a.name for a in plan.assets), key=_last)
        for name in names:
            os.replace(folder / (name + ".part"), folder / name)
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        raise _explain(e, folder) from e


def _last(name: str) -> int:
    return 2 if name == "config.json" else 1 if name.endswith(".index.json") else 0
