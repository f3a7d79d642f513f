"""Jobs on threads: each done once, the first error raised, and none left waiting."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from ckptconv.engine.threads import on_threads


def test_every_job_is_done_once_with_the_memory_of_its_thread() -> None:
    memories: list[list[int]] = []

    def memory() -> list[int]:
        memories.append([])
        return memories[-1]

    on_threads(
        iter(range(500)),
        lambda job, mine: mine.append(job),
        count=4,
        memory=memory,
        stop=threading.Event(),
    )
    assert len(memories) == 4
    assert sorted(job for m in memories for job in m) == list(range(500))


def test_an_error_ends_the_run_and_wakes_those_that_wait() -> None:
    stop, turn, waiting = threading.Event(), threading.Condition(), threading.Event()
    done: list[int] = []

    def do(job: int, mine: None) -> None:
        if job == 0:  # waits for a turn that never comes
            with turn:
                waiting.set()
                turn.wait_for(stop.is_set)
        elif job == 1:
            waiting.wait()
            raise ValueError("first")
        done.append(job)

    def wake() -> None:
        with turn:
            turn.notify_all()

    with pytest.raises(ValueError, match="first"):
        on_threads(iter(range(100)), do, count=2, memory=lambda: None, stop=stop, stopped=wake)
    assert done == [0] and stop.is_set()


def test_an_error_in_drawing_jobs_is_raised() -> None:
    def jobs() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        on_threads(jobs(), lambda job, mine: None, count=2, memory=lambda: None, stop=threading.Event())


def test_ctrl_c_is_raised_when_every_thread_has_ended() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        _interrupt_one()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_one() -> None:
    stop, ended = threading.Event(), threading.Event()

    def do(job: int, mine: None) -> None:
        signal.raise_signal(signal.SIGINT)  # the main thread takes it
        stop.wait()
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        on_threads(iter([1]), do, count=1, memory=lambda: None, stop=stop)
    assert ended.is_set()
