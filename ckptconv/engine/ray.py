"""Carry out tasks on a Ray cluster; the journal and the files' names stay with the asking process."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ckptconv.engine.abreast import abreast, grouped
from ckptconv.engine.fill import pairs_by_tensor
from ckptconv.engine.journal import Journal
from ckptconv.engine.ledger import Ledger
from ckptconv.engine.options import DIGEST_BLOCK, Options
from ckptconv.engine.part import Failure, Job, Seal, Sealed, from_anywhere, part_of, unshared_input, work
from ckptconv.engine.remotesink import Outputs
from ckptconv.engine.sink import create
from ckptconv.engine.task import Result, Task, block_count, tasks_of
from ckptconv.engine.witness import WHAT, Witness
from ckptconv.errors import ClusterError, InputChangedError
from ckptconv.plans.plan import Plan
from ckptconv.plans.shown import count
from ckptconv.records import dataclass

# Read when ray is imported. The second keeps what it says of lost nodes, at length, off stdout.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
import ray
from ray.exceptions import RayError, RayTaskError

__all__ = ["run_on_ray"]

# Ray runs a task again when its process or node dies; one that kills its worker each time must end.
_RETRIES = 10

# A task starts in milliseconds; it is long enough not to notice, and short enough to lose.
_SHORTEST, _LONGEST = (32 << 20) // DIGEST_BLOCK, (256 << 20) // DIGEST_BLOCK

_CONNECTING = 10.0  # seconds for a connection to the head
_CLIENT_TRIES = 4  # the head forks a server for each client, which on a busy one may die as it starts
_STOPPING = 10.0  # seconds that tasks under way get to end, when the run has failed

# Ray ends a process that asks, without a word to it, when the head has not answered for 60 seconds. One that
# is started again in less than this takes its place.
_SILENT = 20.0
_LOOK, _ANSWER = 2.0, 5.0  # seconds between two looks at the head, and for its answer


def run_on_ray(
    plan: Plan,
    files: Sequence[int],
    folder: Path,
    options: Options,
    journal: Journal,
    ledger: Ledger,
    outputs: Outputs | None = None,
) -> None:
    """Write the files of these numbers; with ``outputs`` the folder is behind a URL, and workers send parts.

    Raises:
        ClusterError: if there is no cluster, a node sees other files, or a task was lost too often.
        KeyboardInterrupt: on Ctrl-C, when the tasks under way have ended.
        Exception: the first that a task raised.
    """
    run = secrets.token_hex(8)
    journal.mark(run)
    with _connected(options):
        job = Job(run, from_anywhere(str(folder)), options.max_memory)
        _Cluster(plan, folder, options, job, ledger, outputs).run(files)


@contextmanager
def _connected(options: Options) -> Iterator[None]:
    """Connect to a cluster for as long as the run lasts, unless the caller has connected already."""
    if ray.is_initialized():
        yield
        return
    address = options.address or "auto"
    _check_address(address)
    more: dict[str, Any] = {}
    if address == "local":
        more = {"include_dashboard": False, "num_cpus": options.workers or None}
    # Ray takes SIGTERM to end in its own way; a conversion ends as it does without Ray.
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        _init(address, more)
    except (ConnectionError, RuntimeError, ValueError, ImportError, RayError) as e:
        raise _unreachable(address, e) from e
    finally:
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    try:
        yield
    except HeadLostError:
        _leave()
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def _leave() -> None:
    """Leave a cluster whose head is gone: Ray would wait for it until it ends this process."""
    threading.Thread(target=ray.shutdown, daemon=True, name="leave").start()
    atexit.unregister(ray._private.worker.shutdown)


def _init(address: str, more: dict[str, Any]) -> None:
    """Connect, and again if the head says that the server it started for this client did not start."""
    for left in reversed(range(_CLIENT_TRIES)):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **more)
            return
        except ConnectionAbortedError:
            if not left:
                raise


def _check_address(address: str) -> None:
    """Try a HOST:PORT before Ray does, which goes on trying for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECTING).close()
    except OSError as e:
        raise _unreachable(address, e) from e


def _unreachable(address: str, error: Exception) -> ClusterError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # What a server could not do is told with its traceback, whose last line is the reason.
    reason = f"{lines[0]} {lines[-1]}" if "Traceback" in str(error) else lines[0]
    return ClusterError(
        f"cannot connect to a Ray cluster: {reason}",
        where=address,
        hint="start one with 'ray start --head', give its --address, or try --address 'local'",
    )


def _work(
    job: Job, part: list[Any], files: tuple[int, ...], what: Sequence[Task] | Seal
) -> Sequence[Result] | Sealed | Failure:
    """Run on a worker. The part comes inside a list, so that Ray does not load it for every task.

    Args:
        job: The run.
        part: The files' part of the plan, by reference, and the tokens of their uploads, if they are such.
        files: The files' numbers.
        what: The tasks.
    """
    return work(job, lambda: ray.get(part[0]), files, what, part[1])


@dataclass(slots=True)
class _Group:
    """Files that are made abreast: their numbers, their part of the plan, and how many are not whole."""

    files: tuple[int, ...]
    part: list[Any]  # by reference, so that it goes to the store once; the tokens of uploads
    left: int


class HeadLostError(ClusterError):
    """The head does not answer any more: nothing is to be asked of it, not even to end."""


class _Silent(Exception):
    """The head has not answered for a while."""


class _Head:
    """Look now and then whether the cluster's head is there, and how many cores it knows of.

    Whoever asks a head for something that is not there any more waits until Ray ends the process, so that is
    left to a thread; a connection tells whether it is there.
    """

    def __init__(self) -> None:
        self.cores = _cpus()
        self._over = threading.Event()
        self._counting = threading.Thread(target=self._count, daemon=True, name="cores")
        self._counting.start()
        self.address = ""
        with suppress(Exception):  # a client knows no address of its own: its connection fails by itself
            self.address = str(ray.get_runtime_context().gcs_address)
        host, _, port = self.address.rpartition(":")
        self._place = (host.strip("[]"), int(port)) if port.isdecimal() else None
        self._seen = self._looked = time.monotonic()

    def leave(self) -> None:
        """Look no more."""
        self._over.set()
        self._counting.join(timeout=1)  # for ever, where it waits for a head that is gone

    def _count(self) -> None:
        with suppress(Exception):  # the cluster is gone
            while not self._over.wait(_LOOK):
                self.cores = _cpus()

    def look(self) -> None:
        """Look, if it is time to.

        Raises:
            _Silent: if it has not answered for a while.
        """
        now = time.monotonic()
        if self._place is None or now - self._looked < _LOOK:
            return
        try:
            socket.create_connection(self._place, timeout=_ANSWER).close()
            self._seen = time.monotonic()
        except OSError as e:
            if time.monotonic() - self._seen > _SILENT:
                raise _Silent(f"{self.address} does not answer") from e
        self._looked = time.monotonic()


class _Cluster:
    """Keep so many tasks under way, and finish each file when its last task is done.

    By default they are two a core, so that none waits for the next.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        options: Options,
        job: Job,
        ledger: Ledger,
        outputs: Outputs | None,
    ) -> None:
        self._plan, self._folder, self._options = plan, folder, options
        self._job, self._ledger, self._outputs = job, ledger, outputs
        self._pairs = pairs_by_tensor(plan.relation)
        self._groups: dict[int, _Group] = {}  # by file
        self._todo = 0
        self._witness: Witness | None = None
        self._under_way: dict[Any, _Group] = {}  # by reference
        # Spread: copying is bound by the nodes' networks, so none should get many tasks first.
        self._remote = ray.remote(
            num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD", retry_exceptions=False
        )(_work)

    def run(self, files: Sequence[int]) -> None:
        head, self._todo = _Head(), len(files)
        self._witness = Witness(head.address)
        try:
            self._run(self._tasks(files, head.cores), head)
        except _Silent as e:
            raise self._lost(f"the head of the cluster is lost ({e})") from e
        except BaseException:
            self._settle()
            raise
        finally:
            head.leave()
            self._witness.dismiss()
            self._witness = None

    def _run(self, tasks: Iterator[tuple[_Group, list[Task]]], head: _Head) -> None:
        more = True
        while more or self._under_way:
            while more and len(self._under_way) < (self._options.workers or max(2, 2 * head.cores)):
                if (task := next(tasks, None)) is None:
                    more = False
                else:
                    self._submit(*task)
            head.look()
            for ref in self._ready():
                self._take(ref)

    def _ready(self) -> list[Any]:
        """Wait a second for a task to end.

        Raises:
            _Silent: if this is a client whose connection is gone.
        """
        if not self._under_way:
            return []
        try:
            ready: list[Any] = ray.wait(list(self._under_way), num_returns=1, timeout=1)[0]
        except ConnectionError as e:
            raise _Silent(str(e)) from e
        return ready

    def _lost(self, what: str) -> HeadLostError:
        """Say what a run keeps, and what it loses, whose cluster is gone."""
        every = len(self._plan.files)
        return HeadLostError(
            f"{what}: {every - self._todo} of {count(every, 'file')} "
            f"whole and kept, {len(self._groups)} begun and lost",
            where=self._folder,
            hint="start a cluster, then run the same command again with --resume",
        )

    def _keep_told(self) -> None:
        """Tell what is to be said if Ray ends this process."""
        if self._witness is not None:
            self._witness.tell(f"error: {self._lost(WHAT)}")

    def _tasks(self, files: Sequence[int], cores: int) -> Iterator[tuple[_Group, list[Task]]]:
        """Yield the tasks of all files in order, each file created when its first task is due.

        Files that share parts of the source are made abreast, by tasks of as many bytes in all.
        """
        total = sum(self._plan.files[f].layout.size for f in files)
        share = total // DIGEST_BLOCK // (8 * (self._options.workers or max(1, cores)))
        blocks = max(_SHORTEST, min(_LONGEST, share))
        for one in grouped(self._plan, files, self._pairs):
            group = self._begin(tuple(one.files))
            least = self._least(group.files)
            each = -(-max(1, blocks // len(group.files)) // least) * least
            for tasks in abreast([tasks_of(n, self._plan.files[n].layout.size, each) for n in group.files]):
                yield group, tasks

    def _begin(self, files: tuple[int, ...]) -> _Group:
        tokens: dict[int, Mapping[str, Any]] = {}
        for number in files:
            file = self._plan.files[number]
            if self._outputs is None:
                create(self._folder / (file.name + ".part"), file.layout.size)
            else:
                tokens[number] = self._outputs.begin(file).token()
            self._ledger.open(number)
        part = [ray.put(part_of(self._plan, files, self._pairs)), None if self._outputs is None else tokens]
        group = _Group(files, part, len(files))
        self._groups |= dict.fromkeys(files, group)
        self._keep_told()
        return group

    def _least(self, files: tuple[int, ...]) -> int:
        """Return of how many blocks of each file a task is, or a multiple."""
        if self._outputs is None:
            return 1
        found = {self._outputs.blocks_apart(self._plan.files[n]) for n in files}
        return (
            found.pop()
            if len(found) == 1
            else max(block_count(self._plan.files[n].layout.size) for n in files)
        )

    def _submit(self, group: _Group, what: Sequence[Task] | Seal) -> None:
        self._under_way[self._remote.remote(self._job, group.part, group.files, what)] = group

    def _take(self, ref: Any) -> None:
        group = self._under_way.pop(ref)
        found = self._result(ref)
        if isinstance(found, Sealed):
            self._whole(found.file)
            return
        for result in found:
            file = result.task.file
            if self._outputs is not None:
                self._outputs.took(self._plan.files[file], result.sent)
            if self._ledger.took(result):
                if self._plan.files[file].layout.needs_crc and self._outputs is None:
                    self._submit(group, Seal(file, self._ledger.crcs(file)))
                else:
                    self._whole(file)

    def _whole(self, file: int) -> None:
        group = self._groups.pop(file)
        group.left -= 1
        if not group.left:
            group.part.clear()
        if self._outputs is not None:
            self._outputs.whole(self._plan.files[file])
        self._ledger.whole(file)
        self._todo -= 1
        self._keep_told()

    def _result(self, ref: Any) -> Sequence[Result] | Sealed:
        try:
            found: Sequence[Result] | Sealed | Failure = ray.get(ref)
        except RayTaskError as e:
            if isinstance(e.cause, ImportError):
                raise ClusterError(
                    f"a node cannot run ckptconv: {e.cause}", hint="install ckptconv[ray] on all nodes"
                ) from e
            raise e.cause or e from e
        except RayError as e:
            raise ClusterError(
                f"a task was lost {_RETRIES + 1} times, or the cluster was: {str(e).strip().splitlines()[0]}",
                where=self._folder,
                hint="see to the nodes, then run again with --resume",
            ) from e
        if not isinstance(found, Failure):
            return found
        if isinstance(found.error, InputChangedError):
            raise unshared_input(found, self._plan.inputs)
        raise found.error

    def _settle(self) -> None:
        """Wait for what is under way, which would write into the folder after the run has ended.

        It is little, at most two tasks a core. Ray could cancel it, but ``ray.cancel`` (Ray 2.60) ends the
        process that asks, one time in five, where a task is done at that moment: ``Check failed: it !=
        submissible_tasks_.end()`` in task_manager.cc.
        """
        with suppress(Exception, KeyboardInterrupt):
            ray.wait(list(self._under_way), num_returns=len(self._under_way), timeout=_STOPPING)


def _cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 0))
