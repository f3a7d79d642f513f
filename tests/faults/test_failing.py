"""Each system call that can fail fails once in a run of every kind: an error that says so, and nothing lost.

The short form of ``make faults``.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.failing import FAULTS, Bench, calls
from faults.killing import untimed
from faults.kinds import KINDS, Kind, Source
from running import contents, succeeds


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("sources") / "base", 16, 2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_one_call_of_each_kind_fails(kind: Kind, source: Source, tmp_path: Path) -> None:
    bench = Bench(kind, source, tmp_path)
    for fault in FAULTS:
        for at in calls(bench, fault, 1, 1):
            bench.fail(fault, at)
    assert not bench.lost, "\n".join(bench.lost)
    assert bench.tally["refused"] > 5 and bench.tally["survived"] > 2, bench.tally


@pytest.fixture
def storm() -> Iterator[None]:
    """Interrupt system calls a thousand times a second (EINTR)."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS[:4], ids=lambda k: k.name)
def test_interrupted_calls_are_done_again(kind: Kind, source: Source, tmp_path: Path, storm: None) -> None:
    succeeds(*source.words(kind, tmp_path / "stormy"), "--quiet")
    signal.setitimer(signal.ITIMER_REAL, 0)
    succeeds(*source.words(kind, tmp_path / "calm"), "--quiet")
    assert untimed(contents(tmp_path / "stormy")) == untimed(contents(tmp_path / "calm"))
