"""Carry out a plan: fill its files tile by tile on a few threads, then give them their names."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from ckptconv.engine.buffers import Buffers
from ckptconv.engine.events import FileDone, Listener, Progress, Started, Stored
from ckptconv.engine.fill import Filler
from ckptconv.engine.flush import WriteBehind
from ckptconv.engine.journal import JOURNAL, Entries, Journal, read_entries
from ckptconv.errors import InterruptedRunError, OutputError
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
    tile = max(1, options.max_memory // (workers * _BUFFERS))
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
    digest = plan.digest()
    try:
        _prepare(plan, folder, options, digest)
        with (
            Journal(folder, digest, resume=options.resume, overwrite=options.overwrite) as journal,
            SourceFiles(plan.inputs) as sources,
        ):
            try:
                report = _run(plan, folder, options, journal, sources, tell)
            except BaseException:
                if not journal.done:
                    journal.remove()
                raise
            journal.remove()
    except KeyboardInterrupt as e:
        raise _interrupted(folder) from e
    except OSError as e:
        raise _explain(e, folder) from e
    tell(Stored(str(folder)))
    return report


def _run(
    plan: Plan, folder: Path, options: Options, journal: Journal, sources: SourceFiles, tell: Listener
) -> Report:
    if journal.found and not journal.resumed:
        _remove_parts(folder)
    done = {f.name for f in plan.files if f.name in journal.done and _is_there(folder, f, journal)}
    resumed = sum(f.layout.size for f in plan.files if f.name in done)
    _check_space(plan, folder, resumed)
    tell(Started(plan.bytes_out, resumed))
    overflows = _Pool(plan, folder, options, sources, journal, tell).run(
        [f for f in plan.files if f.name not in done]
    )
    sources.check()
    _commit(plan, folder, journal)
    files = {f.name: journal.done[f.name] for f in plan.files}
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
            self._error = _interrupted(self._folder)
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
                    self._error = _explain(e, self._folder)
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
            if work.file.layout.needs_crc:
                for tensor, a, b in spans:
                    crcs[tensor, at + a] = (zlib.crc32(view[a:b]), b - a)
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
        touched: set[int] = set()
        for at, data in torchbin.seal(work.file.layout, sums):
            self._write(work, data, at)
            touched.update(range(at // DIGEST_BLOCK, (at + max(len(data), 1) - 1) // DIGEST_BLOCK + 1))
        for block in touched:
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
                (self._folder / (file.name + ".part")).unlink(missing_ok=True)


_NEXT = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "free space or raise the limit, then run again with --resume",
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE), "raise the limit (ulimit -n), then run again with --resume"
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder you may write to"),
}


def _explain(error: BaseException, folder: Path) -> BaseException:
    """Turn an operating system's error into one that says what to do."""
    if not isinstance(error, OSError):
        return error
    return OutputError(
        f"{error.strerror or error}",
        where=error.filename or folder,
        hint=_NEXT.get(error.errno or 0, "see to the cause, then run again with --resume"),
    )


def _interrupted(folder: Path) -> InterruptedRunError:
    return InterruptedRunError(
        "interrupted; what is whole is kept", where=folder, hint="run the same command again with --resume"
    )


def _is_there(folder: Path, file: OutFile, journal: Journal) -> bool:
    """Whether a file the journal calls whole is there, under its temporary or already its final name."""
    names = [file.name + ".part", file.name][: 1 + journal.naming]
    found = [folder / n for n in names if (folder / n).is_file()]
    return any(p.stat().st_size == file.layout.size for p in found)


def _prepare(plan: Plan, folder: Path, options: Options, digest: str) -> None:
    """Create the folder, or check that it may be written into."""
    if folder.exists() and not folder.is_dir():
        raise OutputError("the output is a file, not a folder", where=folder, hint="name a folder")
    real = os.path.realpath(folder)
    if real in {
        os.path.realpath(plan.source),
        *(os.path.dirname(os.path.realpath(i.path)) for i in plan.inputs),
    }:
        raise OutputError(
            "the output folder is the one the checkpoint is read from",
            where=folder,
            hint="choose another folder",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(
            f"cannot create the folder: {e.strerror}", where=folder, hint="choose a folder you may write to"
        ) from e
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            "the folder cannot be written to", where=folder, hint="choose a folder you may write to"
        )
    earlier = read_entries(folder)
    if options.overwrite:
        return
    if earlier is not None and not options.resume and (earlier.naming or any(_parts(folder))):
        raise OutputError(
            "the folder holds an interrupted run",
            where=folder,
            hint="give --resume to go on with it, or --overwrite to start again",
        )
    if others := _others(plan, folder, earlier, digest):
        raise OutputError(
            f"the output folder is not empty ({', '.join(others[:5])})",
            where=folder,
            hint="choose another folder, or give --overwrite to replace the model in it",
        )


def _others(plan: Plan, folder: Path, earlier: Entries | None, digest: str) -> list[str]:
    """Return what lies in the folder and is not what a run that may be resumed left there."""
    ours = {JOURNAL}
    if earlier is not None:
        ours.update(p.name for p in _parts(folder))
        if earlier.plan == digest and earlier.overwrite:
            return []
        if earlier.plan == digest and earlier.naming:
            names = [*(f.name for f in plan.files), *(a.name for a in plan.assets)]
            ours.update(Path(n).parts[0] for n in names)
    return sorted(p.name for p in folder.iterdir() if p.name not in ours)


_PARTS = ("*.part", "additional_chat_templates/*.part")


def _parts(folder: Path) -> Iterator[Path]:
    return (p for pattern in _PARTS for p in folder.glob(pattern))


def _remove_parts(folder: Path) -> None:
    """Remove what an interrupted run of another plan left."""
    for path in _parts(folder):
        path.unlink()


def _check_space(plan: Plan, folder: Path, resumed: int) -> None:
    need = plan.bytes_out - resumed + sum(len(a.content) for a in plan.assets)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OutputError(
            f"{need} bytes are to be written, but only {free} are free",
            where=folder,
            hint="free space, choose another folder, or write fewer bytes with --dtype bfloat16",
        )


# In the order the old model is taken apart: it stops looking whole first.
_STALE = ("config.json", "*.index.json", "*.safetensors", "*.bin")


def _commit(plan: Plan, folder: Path, journal: Journal) -> None:
    """Give every file its name: weights first, then assets, the index and the config last."""
    for asset in plan.assets:
        path = folder / (asset.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as f:
            f.write(asset.content)
            f.flush()
            os.fsync(f.fileno())
    names = [f.name for f in plan.files] + sorted((a.name for a in plan.assets), key=_last)
    journal.name_all()
    if journal.overwrite:
        for path in [p for pattern in _STALE for p in folder.glob(pattern)]:
            # One that an earlier run has named already is of the new model.
            if path.name not in names or (folder / (path.name + ".part")).exists():
                path.unlink()
    for name in names:
        if (part := folder / (name + ".part")).exists():
            os.replace(part, folder / name)
    _sync(folder)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _last(name: str) -> int:
    return 2 if name == "config.json" else 1 if name.endswith(".index.json") else 0
