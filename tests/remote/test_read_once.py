"""From URLs each byte is read once, whatever the layouts, in few requests; bytes and requests are counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptconv
from ckptconv.engine.ahead import Ahead, coalesced
from ckptconv.engine.remotesink import cut_to
from ckptconv.places.files import SourceFiles
from ckptconv.places.places import forget
from counting import CountingServer, make_model, weights
from faulty import FaultyProxy
from running import contents

pytest.importorskip("aiohttp")

RANKS = {"to": "megatron", "sizes": {"tp": 4, "pp": 2}}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as Hugging Face has it, as ranks of Megatron, and as a distributed checkpoint."""
    root = tmp_path_factory.mktemp("www")
    model = make_model(root / "hf")
    ckptconv.convert(model, root / "megatron", **RANKS)
    ckptconv.convert(model, root / "torch_dist", to="torch_dist")
    return root


@pytest.fixture
def server(places: Path) -> Iterator[CountingServer]:
    forget()
    made = CountingServer(places)
    yield made
    made.stop()


CASES: list[tuple[str, dict[str, Any], int]] = [
    ("hf", RANKS, 45),
    ("hf", {"to": "megatron", "sizes": {"tp": 8, "pp": 1}, "dtype": "float32"}, 90),
    ("hf", {"to": "torch_dist"}, 35),
    ("hf", {"to": "hf", "dtype": "bfloat16"}, 25),
    ("megatron", {"to": "hf"}, 140),
    ("torch_dist", {"to": "hf"}, 60),
]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(("source", "target", "most"), CASES, ids=lambda x: str(x))
def test_each_byte_is_read_once(
    server: CountingServer,
    places: Path,
    tmp_path: Path,
    source: str,
    target: dict[str, Any],
    most: int,
    workers: int,
) -> None:
    more = {} if source == "hf" else {"config": str(places / "hf")}
    ckptconv.convert(f"{server.url}/{source}", tmp_path / "there", workers=workers, **target, **more)
    size = weights(places / source)
    assert size < server.nbytes <= 1.05 * size
    assert len(server.reads) <= most
    ckptconv.convert(places / source, tmp_path / "here", **target, **more)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.parametrize(("source", "other"), [("hf", "megatron"), ("megatron", "hf")])
def test_what_is_compared_is_read_once(server: CountingServer, places: Path, source: str, other: str) -> None:
    config = {"config": str(places / "hf")} if source != "hf" else {}
    result = ckptconv.verify_roundtrip(f"{server.url}/{source}", f"{server.url}/{other}", **config)
    assert result.ok
    size = weights(places / source) + weights(places / other)
    assert size < server.nbytes <= 1.05 * size
    assert len(server.reads) <= 250


def test_little_memory_costs_requests_alone(server: CountingServer, places: Path, tmp_path: Path) -> None:
    ckptconv.convert(f"{server.url}/hf", tmp_path / "there", max_memory="8MiB", **RANKS)
    size = weights(places / "hf")
    assert server.nbytes <= 1.06 * size
    ckptconv.convert(places / "hf", tmp_path / "here", **RANKS)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.parametrize("target", [RANKS, {"to": "hf"}], ids=lambda t: t["to"])
def test_from_s3_to_s3(
    s3: FaultyProxy, put: Any, places: Path, tmp_path: Path, target: dict[str, Any]
) -> None:
    name, more = ("hf", {}) if target is RANKS else ("megatron", {"config": str(places / "hf")})
    url = put(places / name)
    s3.reset()
    ckptconv.convert(url, f"s3://{s3.bucket}/out", **target, **more)
    size = weights(places / name)
    assert sum(n for _, n in s3.ranges) <= 1.05 * size
    assert s3.count()["GET"] <= 140
    ckptconv.convert(places / name, tmp_path / "here", **target, **more)
    fs = s3.files()
    assert {k: fs.cat_file(f"{s3.bucket}/out/{k}") for k in s3.found("out")} == contents(tmp_path / "here")
    assert s3.uploads() == []


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 5_000_000), st.integers(1, 400_000)), max_size=30
    )
)
def test_what_is_joined_holds_all_and_little_more(found: list[tuple[str, int, int]]) -> None:
    ranges = [(path, start, start + count) for path, start, count in found]
    exact, joined = coalesced(ranges, between=0), coalesced(ranges)
    for path, start, end in ranges:
        assert any(p == path and a <= start and end <= b for p, a, b in joined)
    assert all(a[0] != b[0] or a[2] < b[1] for a, b in pairwise(joined))
    needed, asked = (sum(end - start for _, start, end in each) for each in (exact, joined))
    assert needed <= asked <= needed * 1.01 + (64 << 10) and len(joined) <= len(exact)


@given(st.integers(1, 100), st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_files_are_cut_to_what_has_room(room: int, sizes: list[int]) -> None:
    cut = cut_to(room, sizes)
    assert [i for few in cut for i in few] == list(range(len(sizes)))
    assert all(len(few) == 1 or sum(sizes[i] for i in few) <= room for few in cut)


class _Asked(SourceFiles):
    """Take note of what is asked for and not yet let go."""

    def __init__(self, memory: int) -> None:
        super().__init__([], memory)
        self.held: list[object] = []

    def ask(self, ranges: Any) -> Any:
        found = list(ranges)
        self.held += found
        assert sum(end - start for _, start, end in self.held) <= self.memory or self.held == found
        return found

    def let_go(self, asked: Any) -> None:
        for one in asked:
            self.held.remove(one)


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5), max_size=12), st.integers(1, 4))
def test_no_thread_waits_for_ever_and_memory_is_kept_to(jobs: list[list[int]], count: int) -> None:
    files, at = _Asked(50), 0
    turns = []
    for job, sizes in enumerate(jobs):
        for turn, size in enumerate(sizes):
            turns.append(((job, turn), [("x", at, at + size)]))
            at += size + (3 << 20)
    ahead = Ahead(iter(turns), files, threading.Event())
    drawn, lock = iter(enumerate(jobs)), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(drawn, None)
            if job is None:
                return
            for turn, size in enumerate(job[1]):
                with ahead.turn((job[0], turn)):
                    assert not size or files.held

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert files.held == []
