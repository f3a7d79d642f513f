"""Do jobs on a few threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["on_threads"]

Job = TypeVar("Job")
Memory = TypeVar("Memory")


def on_threads(
    jobs: Iterator[Job],
    do: Callable[[Job, Memory], None],
    *,
    count: int,
    memory: Callable[[], Memory],
    stop: threading.Event,
    stopped: Callable[[], None] = lambda: None,
) -> None:
    """Do every job on one of ``count`` threads; return when all are done, or none is under way any more.

    Args:
        jobs: The jobs, each drawn when a thread is free for it; one thread at a time draws.
        do: Does one; what ``memory`` made for its thread is its second argument.
        count: How many threads.
        memory: Makes what a thread keeps from job to job.
        stop: Is set at the first error and at Ctrl-C; a long job may look at it, and return early.
        stopped: Called once ``stop`` is set, to wake jobs that wait for each other.

    Raises:
        KeyboardInterrupt: on Ctrl-C, when every thread has ended.
        BaseException: the first that a job, or drawing one, raised.
    """
    lock = threading.Lock()
    errors: list[BaseException] = []
    begun: list[threading.Event] = []
    ends = [threading.Event() for _ in range(count)]

    def halt() -> None:
        stop.set()
        stopped()

    def work(end: threading.Event) -> None:
        begun.append(end)
        try:
            mine = memory()
            while not stop.is_set():
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                do(job, mine)
        except BaseException as e:
            errors.append(e)
            halt()
        finally:
            end.set()

    # Events, since an interrupted Thread.join takes its thread for dead (CPython 3.11, Lib/threading.py,
    # _wait_for_tstate_lock). A thread that has not begun when the run stops draws no job.
    try:
        for end in ends:
            threading.Thread(target=work, args=(end,), daemon=True).start()
        for end in ends:
            while not end.wait(0.1):  # a signal that another thread took ends no wait without a time
                pass
    except BaseException:
        halt()
        for end in begun:
            end.wait()
        raise
    if errors:
        raise errors[0]
