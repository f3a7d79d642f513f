"""Convert from an S3 server: the bytes of the local run, few requests, and faults tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptconv
from ckptconv.errors import CkptconvError, InputChangedError
from ckptconv.places import remote
from ckptconv.places.files import SourceFiles, stamp
from faulty import Fault, FaultyProxy
from running import fails


def same(one: Path, two: Path) -> None:
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file()) and names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WAIT", 0.01)


def test_deepspeed_from_s3(s3: FaultyProxy, put, demo_run: Path, tmp_path: Path) -> None:
    url = put(demo_run)
    ckptconv.convert(demo_run, tmp_path / "local", to="hf")
    ckptconv.convert(url, tmp_path / "remote", to="hf")
    same(tmp_path / "local", tmp_path / "remote")
    # Four files of ranks, five beside them, `latest`; each is asked for at most three times.
    assert s3.count()["GET"] <= 30 and set(s3.count()) == {"GET"}
    assert not [line for line in s3.lines if "range" in line]


@pytest.mark.parametrize("kind", ["503", "reset", "slow"])
def test_a_fault_is_tried_again(s3: FaultyProxy, put, demo_run: Path, tmp_path: Path, kind: str) -> None:
    url = put(demo_run)
    ckptconv.convert(demo_run, tmp_path / "local", to="hf")
    s3.faults = [
        Fault(kind, lambda line: "optim_states" in line, 3),
        Fault(kind, lambda line: "list-type" in line, 1),
        Fault(kind, lambda line: "config.json" in line, 1),
    ]
    ckptconv.convert(url, tmp_path / "remote", to="hf")
    assert [f.times for f in s3.faults] == [0, 0, 0]
    same(tmp_path / "local", tmp_path / "remote")


def test_a_server_that_stays_broken_is_an_error(s3: FaultyProxy, put, demo_run: Path, tmp_path: Path) -> None:
    url = put(demo_run)
    made = ckptconv.plan(url, to="hf")
    s3.faults = [Fault("reset", lambda line: "optim_states" in line, None)]
    from ckptconv.engine.options import Options
    from ckptconv.engine.run import run

    remote.forget()
    with pytest.raises(CkptconvError, match="given up after 5 tries") as caught:
        run(made, tmp_path / "out", Options())
    assert "optim_states" in str(caught.value.where)
    assert not [p for p in (tmp_path / "out").iterdir() if p.name != ".ckptconv-journal"]


@pytest.mark.parametrize("kind", ["stall", "stall-midway"])
def test_a_server_that_never_answers_is_an_error(
    s3: FaultyProxy, put, demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.3)  # 15 s
    url = put(demo_run)
    s3.faults = [Fault(kind, lambda line: "optim_states" in line, 4)]
    ckptconv.convert(url, tmp_path / "late", to="hf")
    remote.forget()
    s3.faults = [Fault(kind, lambda line: "optim_states" in line, None)]
    told = fails(
        1, "convert", url, tmp_path / "out", "--to", "hf", naming=("given up after 5 tries", "optim_states")
    )
    assert "timeout" in told.lower()
    assert not (tmp_path / "out").exists()


def test_an_object_that_changes_is_noticed(s3: FaultyProxy, put, demo_run: Path, tmp_path: Path) -> None:
    url = put(demo_run)
    path = f"{s3.bucket}/in/config.json"
    known = stamp(f"s3://{path}")
    with SourceFiles([known]) as sources:
        sources.check()
        s3.files().pipe_file(path, b"x" * known.size)
        with pytest.raises(InputChangedError):
            sources.check()
        s3.files().rm_file(path)
        with pytest.raises(InputChangedError):
            sources.check()
    assert url


def test_what_is_read_is_asked_for_in_few_large_requests(s3: FaultyProxy, put, tmp_path: Path) -> None:
    size = 12 << 20
    (tmp_path / "in").mkdir()
    data = bytes(bytearray(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "in" / "x").write_bytes(data)
    url = put(tmp_path / "in") + "/x"
    with SourceFiles([stamp(url)], memory=64 << 20) as sources:
        s3.reset()
        buffer = bytearray(100_000)
        for at in range(0, size, len(buffer)):
            part = memoryview(buffer)[: min(len(buffer), size - at)]
            sources.read_into(url, at, part)
            assert part == data[at : at + len(part)]
        assert s3.count()["GET"] <= 5
        assert sum(n for _, n in s3.ranges) == size  # each byte once
        s3.reset()
    with SourceFiles([stamp(url)], memory=1 << 20) as sources:
        s3.reset()
        for at in range(0, size, 4 << 20):  # far apart: what lies between is not read
            sources.read_into(url, at, memoryview(buffer))
        assert sum(n for _, n in s3.ranges) <= 3 * (1 << 20)


def test_what_is_asked_for_is_read_once(s3: FaultyProxy, put, tmp_path: Path) -> None:
    size, piece = 12 << 20, 256 << 10
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(bytes(range(256)) * (size // 256))
    url = put(tmp_path / "in") + "/x"
    with SourceFiles([stamp(url)], memory=64 << 20) as sources:
        s3.reset()
        asked = sources.ask([(url, 0, 3 << 20), (url, 8 << 20, 9 << 20)])
        buffer = memoryview(bytearray(piece))
        for _ in range(2):
            for at in (*range(0, 3 << 20, piece), *range(8 << 20, 9 << 20, piece)):
                sources.read_into(url, at, buffer)
                assert bytes(buffer[:256]) == bytes(range(256))
        assert sorted(n for _, n in s3.ranges) == [1 << 20, 3 << 20]
        sources.let_go(asked)
        sources.read_into(url, 4 << 20, buffer)  # what nobody asked for comes as well, and nothing behind it
        assert len(s3.ranges) == 3 and sum(n for _, n in s3.ranges) <= 5 << 20
