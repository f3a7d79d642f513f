"""Tasks of a cluster make ranks that share tensors together, so that each byte is read once there as well."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import ckptconv
from ckptconv.engine import part
from ckptconv.places.places import forget
from counting import CountingServer, make_model, weights
from faulty import FaultyProxy
from running import contents

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

RANKS: dict[str, Any] = {"to": "megatron", "sizes": {"tp": 4, "pp": 2}}
TO_HF: dict[str, Any] = {"to": "hf", "max_shard_size": "20MB"}


class InProcess:
    """Stand for Ray: carry a task out when it is asked for, here, on copies of what it is given."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def get(self, ref: bytes) -> Any:
        return pickle.loads(ref)

    def wait(self, refs: Sequence[bytes], **_: Any) -> tuple[list[bytes], list[bytes]]:
        return [refs[0]], list(refs[1:])

    def remote(self, **_: Any) -> Callable[[Callable[..., Any]], Any]:
        return lambda function: _Remote(function, self.tasks)


class _Remote:
    def __init__(self, function: Callable[..., Any], tasks: list[Any]) -> None:
        self._function, self._tasks = function, tasks

    def remote(self, *arguments: Any) -> bytes:
        self._tasks.append(arguments)
        return pickle.dumps(self._function(*pickle.loads(pickle.dumps(arguments))))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    from ckptconv.engine import ray as engine

    made = InProcess()
    monkeypatch.setattr(engine, "ray", made)
    monkeypatch.setattr(engine, "_SHORTEST", 2)
    yield made
    while part._kept:
        part._kept.popitem()[1].sources.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("www")
    make_model(root / "hf")
    ckptconv.convert(root / "hf", root / "megatron", **RANKS)
    return root


CASES = [("hf", RANKS), ("hf", {"to": "torch_dist"}), ("megatron", TO_HF)]


def config(places: Path, source: str) -> dict[str, str]:
    return {} if source == "hf" else {"config": str(places / "hf")}


@pytest.mark.parametrize(("source", "target"), CASES, ids=["ranks", "torch_dist", "hf"])
def test_from_disk_each_byte_is_read_once(
    cluster: InProcess,
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    target: dict[str, Any],
) -> None:
    read, inner = [0], os.preadv

    def preadv(fd: int, buffers: Any, offset: int, *more: Any) -> int:
        count = inner(fd, buffers, offset, *more)
        read[0] += count
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    ckptconv.convert(places / source, tmp_path / "there", engine="ray", **target, **config(places, source))
    monkeypatch.undo()
    size = weights(places / source)
    assert 0.95 * size < read[0] <= 1.05 * size
    assert len(cluster.tasks) > 1
    ckptconv.convert(places / source, tmp_path / "here", **target, **config(places, source))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.parametrize(("source", "target"), CASES, ids=["ranks", "torch_dist", "hf"])
def test_from_urls_each_byte_is_read_once(
    cluster: InProcess, places: Path, tmp_path: Path, source: str, target: dict[str, Any]
) -> None:
    pytest.importorskip("aiohttp")
    forget()
    server = CountingServer(places)
    url = f"{server.url}/{source}"
    ckptconv.convert(url, tmp_path / "there", engine="ray", **target, **config(places, source))
    server.stop()
    size = weights(places / source)
    assert size < server.nbytes <= 1.05 * size
    assert len(server.reads) <= 180
    ckptconv.convert(places / source, tmp_path / "here", **target, **config(places, source))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.parametrize("free", [None, 9_000_000], ids=["room", "little room"])
def test_ranks_that_are_sent_to_s3_are_made_together_where_there_is_room(
    cluster: InProcess,
    s3: FaultyProxy,
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: int | None,
) -> None:
    import shutil

    if free is not None:
        usage = shutil.disk_usage(places)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    ckptconv.convert(places / "hf", f"s3://{s3.bucket}/out", engine="ray", **RANKS)
    assert [len(files) for _, _, files, _ in cluster.tasks] == [4, 4]
    monkeypatch.undo()
    ckptconv.convert(places / "hf", tmp_path / "here", **RANKS)
    fs = s3.files()
    assert {k: fs.cat_file(f"{s3.bucket}/out/{k}") for k in s3.found("out")} == contents(tmp_path / "here")
    assert s3.uploads() == []
