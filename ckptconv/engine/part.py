"""Carry out tasks in a process that has no plan but what it is sent: of some files, as plain data."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ckptconv.containers.decoded import Decoded
from ckptconv.containers.stored import Extent, Stored
from ckptconv.engine.abreast import Job as Together
from ckptconv.engine.abreast import grouped, make
from ckptconv.engine.ahead import Ahead
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.flush import WriteBehind
from ckptconv.engine.journal import marks
from ckptconv.engine.options import Options, tile_bytes
from ckptconv.engine.output import explain
from ckptconv.engine.reads import turns_of
from ckptconv.engine.sink import PartFile, Sink
from ckptconv.engine.sums import Crc, seal
from ckptconv.engine.task import Opened, Result, Task
from ckptconv.errors import CkptconvError, ClusterError
from ckptconv.places.files import FileStamp, SourceFiles, stamp
from ckptconv.places.places import ZEROS, forget, is_remote, place
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.records import dataclass
from ckptconv.relations import Pair, Relation
from ckptconv.relations.terms import concerning, operands
from ckptconv.version import __version__

__all__ = ["Failure", "Job", "Seal", "Sealed", "from_anywhere", "part_of", "work"]

# A file that another node has just made or marked may take a moment to be seen.
_PATIENCE = (0.1, 0.4, 1.5)


@dataclass(frozen=True, slots=True)
class Job:
    """Say to a worker what every task of a run has in common.

    Attributes:
        run: A name no other run has; the journal in the output folder bears it.
        folder: The output folder: absolute, or a URL.
        max_memory: Bytes the buffers of one worker may take.
        version: ckptconv's version; another one may fill or digest in another way.
    """

    run: str
    folder: str
    max_memory: int
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Seal:
    """The last task of a file whose container records sums: see `ckptconv.engine.sums.seal`."""

    file: int
    crcs: Mapping[int, Sequence[Crc]]


@dataclass(frozen=True, slots=True)
class Sealed:
    """Say that a file is sealed and on disk."""

    file: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a task, as it was raised, and the node it was raised on."""

    error: BaseException
    node: str


def part_of(plan: Plan, files: Sequence[int], pairs: Mapping[str, Sequence[Pair]]) -> Plan:
    """Return what is needed to write some files of a plan, with absolute paths.

    Args:
        plan: The plan.
        files: The files' numbers; those of the part are 0 and up.
        pairs: The plan's pairs by tensor, from `pairs_by_tensor`.
    """
    out = tuple([plan.files[n] for n in files])
    names = [t.name for f in out for t in f.layout.tensors]
    terms = concerning(plan.terms, names)
    names += operands(terms)
    chosen = tuple([p for n in names for p in pairs.get(n, ())])
    keys = {p.left.tensor for p in chosen}
    relation = Relation(
        {k: plan.relation.left[k] for k in keys}, {n: plan.relation.right[n] for n in names}, chosen
    )
    stored = {k: _absolute(plan.stored[k]) for k in keys}
    paths = {p for s in stored.values() for p in s.paths()}
    inputs = [replace(i, path=from_anywhere(i.path)) for i in plan.inputs]
    return Plan(
        source=plan.source,
        producer=plan.producer,
        relation=relation,
        stored=stored,
        casts={n: plan.casts[n] for n in names if n in plan.casts},
        files=out,
        inputs=tuple([i for i in inputs if i.path in paths]),
        terms=terms,
    )


def _absolute(stored: Stored) -> Stored:
    if all(path == from_anywhere(path) for path in stored.paths()):
        return stored
    if isinstance(stored, Decoded):
        return stored.moved(from_anywhere)
    extents = [Extent(e.start, from_anywhere(e.path), e.offset) for e in stored.extents]
    return replace(stored, extents=tuple(extents))


def from_anywhere(path: str) -> str:
    """Return a path that does not depend on the working folder; a URL is one."""
    return path if is_remote(path) or path == ZEROS else os.path.abspath(path)


def work(
    job: Job,
    fetch: Callable[[], Plan],
    files: tuple[int, ...],
    what: Sequence[Task] | Seal,
    tokens: Mapping[int, Mapping[str, Any]] | None = None,
) -> Sequence[Result] | Sealed | Failure:
    """Carry out tasks abreast in this process; what was loaded for them is kept for the next.

    Args:
        job: The run.
        fetch: Returns the part of the plan; called unless it is here already.
        files: The numbers of its files.
        what: A task of each of some of the files, or the last one of one.
        tokens: By which the files' uploads are known, if the folder lies behind a URL.

    Returns:
        What was found, or the error that a user is to see. Others are raised.
    """
    node = socket.gethostname()
    try:
        _check_job(job, node)
        loaded = _loaded(job, fetch, files)
        if isinstance(what, Seal):
            return _seal(job, loaded, what, node)
        if tokens is not None:
            return _send(job, loaded, what, tokens)
        return _write(job, loaded, what, node)
    except CkptconvError as e:
        return Failure(e, node)
    except OSError as e:
        return Failure(_explain(e, job, node), node)
    except MemoryError:
        return Failure(ClusterError(f"out of memory on node {node}", hint="lower --max-memory"), node)


def _seal(job: Job, loaded: _Loaded, what: Seal, node: str) -> Sealed:
    file = loaded.file(what.file)
    with closing(_open_sink(job, file.name, file.layout.size, loaded.behind, node)) as sink:
        seal(file.layout, what.crcs, sink)
        sink.finish()
    return Sealed(what.file)


def _write(job: Job, loaded: _Loaded, tasks: Sequence[Task], node: str) -> list[Result]:
    with ExitStack() as stack:
        sinks: dict[int, Sink] = {}
        for task in tasks:
            file = loaded.file(task.file)
            opened = _open_sink(job, file.name, file.layout.size, loaded.behind, node)
            sinks[task.file] = stack.enter_context(closing(opened))
        results = _fill(job, loaded, tasks, sinks)
        for sink in sinks.values():
            sink.finish()  # another node cannot sync what this one has written
    return results


def _fill(job: Job, loaded: _Loaded, tasks: Sequence[Task], sinks: Mapping[int, Sink]) -> list[Result]:
    """Fill the bytes of tasks of some files, abreast."""
    part, plain = loaded.part, Options(workers=1, max_memory=job.max_memory)
    there = [replace(task, file=loaded.numbers[task.file]) for task in tasks]
    opened = {
        loaded.numbers[n]: Opened(loaded.file(n).layout, loaded.fillers[loaded.numbers[n]], sink)
        for n, sink in sinks.items()
    }
    one = Together.of(0, there, loaded.shared, tile_bytes(plain), count=len(there), casts=bool(part.casts))
    ahead = None
    if loaded.sources.is_remote:
        ahead = Ahead(turns_of(part, [one], loaded.pairs), loaded.sources, threading.Event())
    of = {here.file: task for here, task in zip(there, tasks, strict=True)}
    made = make(one, opened.__getitem__, loaded.buffers, ahead)
    return [replace(r, task=of[r.task.file]) for r in made if r is not None]


def _send(
    job: Job, loaded: _Loaded, tasks: Sequence[Task], tokens: Mapping[int, Mapping[str, Any]]
) -> list[Result]:
    """Carry out tasks whose bytes are parts of uploads; of a file that is to be sealed it is all of it.

    These lie on disk before they are sent: as many at a time as have room there.
    """
    from ckptconv.engine.remotesink import cut_to

    with tempfile.TemporaryDirectory(prefix="ckptconv-") as spool:
        layouts = [loaded.file(task.file).layout for task in tasks]
        room, sizes = shutil.disk_usage(spool).free, [f.size if f.needs_crc else 0 for f in layouts]
        few = [tasks[r.start : r.stop] for r in cut_to(room, sizes)]
        return [found for one in few for found in _sent(job, loaded, one, tokens, Path(spool))]


def _sent(
    job: Job, loaded: _Loaded, tasks: Sequence[Task], tokens: Mapping[int, Mapping[str, Any]], spool: Path
) -> Iterator[Result]:
    from ckptconv.engine.remotesink import Parts, Spooled, check_spool
    from ckptconv.places import objects

    uploads: dict[int, objects.Upload] = {}
    sinks: dict[int, Sink] = {}
    with ExitStack() as stack:
        for task in tasks:
            file = loaded.file(task.file)
            url, token = str(place(job.folder) / file.name), tokens[task.file]
            upload = uploads[task.file] = objects.known(url, token, file.layout.size)
            if file.layout.needs_crc:
                check_spool(spool, [file])
                sinks[task.file] = Spooled(spool, file, partial(uploads.__getitem__, task.file), upload.close)
            else:
                sinks[task.file] = Parts(file, upload, upload.close)
            stack.callback(sinks[task.file].close)
        for result in _fill(job, loaded, tasks, sinks):
            number = result.task.file
            if (layout := loaded.file(number).layout).needs_crc:
                seal(layout, {tensor: [crc] for tensor, crc in result.crcs.items()}, sinks[number])
            sinks[number].finish()
            yield replace(result, crcs={}, sent=uploads[number].sent())


def _explain(error: OSError, job: Job, node: str) -> BaseException:
    """Say of a store's error on which node it was met: each has credentials and an endpoint of its own."""
    if error.filename is not None and is_remote(os.fsdecode(error.filename)):
        error.strerror = f"{error.strerror or error} (on node {node})"
    return explain(error, place(job.folder))


@dataclass(slots=True)
class _Loaded:
    """What this process keeps between the tasks of files that are made abreast."""

    part: Plan
    numbers: Mapping[int, int]  # of the run's plan: the part's
    sources: SourceFiles
    pairs: Mapping[str, Sequence[Pair]]
    shared: set[str]
    fillers: Sequence[Filler]
    buffers: Buffers
    behind: WriteBehind

    def file(self, number: int) -> OutFile:
        """Return the file of this number in the run's plan."""
        return self.part.files[self.numbers[number]]


# A worker process carries out one task at a time. Tasks of two files alternate where one ends.
_KEPT = 2
_kept: OrderedDict[tuple[str, tuple[int, ...]], _Loaded] = OrderedDict()
_common: list[tuple[Buffers, WriteBehind]] = []
_seen: set[tuple[str, str]] = set()


def _loaded(job: Job, fetch: Callable[[], Plan], files: tuple[int, ...]) -> _Loaded:
    key = (job.run, files)
    if (found := _kept.get(key)) is not None:
        _kept.move_to_end(key)
        return found
    if not _common:
        _common.append((Buffers(), WriteBehind()))
    while len(_kept) >= _KEPT:
        _kept.popitem(last=False)[1].sources.close()
    part = fetch()
    sources, pairs = SourceFiles(part.inputs, job.max_memory // 2), pairs_by_tensor(part.relation)
    shared = {n for group in grouped(part, range(len(files)), pairs) for n in group.shared}
    fillers = [Filler(part, file, sources, pairs) for file in part.files]
    numbers = {number: i for i, number in enumerate(files)}
    _kept[key] = made = _Loaded(part, numbers, sources, pairs, shared, fillers, *_common[0])
    return made


def _check_job(job: Job, node: str) -> None:
    """Refuse to work for a run of another version, or into a folder that is not the run's."""
    if job.version != __version__:
        raise ClusterError(
            f"node {node} has ckptconv {__version__}, and this run is of {job.version}",
            hint="install the same version on all nodes",
        )
    seen = (job.run, job.folder) in _seen
    # A task that starts late, when its run has ended, must not write into the files of the next: those of a
    # folder have the same names, while what is sent to a store belongs to its run's upload.
    if seen and is_remote(job.folder):
        return
    if not seen:
        forget()
    if not _soon(lambda: marks(place(job.folder), job.run)):
        raise _unshared(f"node {node} does not see the output folder of this run", job.folder)
    _seen.add((job.run, job.folder))


def _open_sink(job: Job, name: str, size: int, behind: WriteBehind, node: str) -> PartFile:
    path = Path(job.folder, name + ".part")
    if not _soon(lambda: path.is_file() and path.stat().st_size == size):
        raise _unshared(f"node {node} does not see the file that was made for it to write", path)
    return PartFile(Path(job.folder), name, behind)


def _soon(true: Callable[[], bool]) -> bool:
    for pause in _PATIENCE:
        if true():
            return True
        time.sleep(pause)
    return true()


def _unshared(message: str, where: str | Path) -> ClusterError:
    return ClusterError(message, where=where, hint=SAME_STORE if is_remote(where) else SHARED)


SAME_STORE = "give every node the same endpoint and credentials, in the environment of its 'ray start'"
SHARED = "use folders on a file system that all nodes share, mounted at the same path"


def unshared_input(failure: Failure, inputs: Iterable[FileStamp]) -> BaseException:
    """Return a failure's error, or one that says that its node sees other files than this one does."""
    error = failure.error
    for known in inputs:
        if isinstance(error, CkptconvError) and error.where == from_anywhere(known.path):
            with suppress(OSError):
                if stamp(known.path) == known:
                    return _unshared(f"node {failure.node} does not see this file as it is here", error.where)
    return error
