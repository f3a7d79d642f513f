"""A Ray cluster sends a run's files to an S3 server by parts, without a file system that its nodes share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptconv as api
from ckptconv.engine import ray as engine
from ckptconv.engine.events import Event, FileDone
from ckptconv.engine.journal import JOURNAL
from ckptconv.errors import CkptconvError, ClusterError
from faulty import Fault, FaultyProxy
from ray_cluster import Cluster
from running import contents

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

TENSORS, ELEMENTS, FILES = 12, 1 << 20, 3
FIELDS: dict[str, Any] = dict(to="hf", assets=False, max_shard_size="18MB")


@pytest.fixture
def worker_environment(s3: FaultyProxy) -> dict[str, str]:
    return s3.environment()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of 50 MB, every tensor unlike the others, alone in its folder."""
    folder = tmp_path_factory.mktemp("source")
    base = torch.arange(ELEMENTS, dtype=torch.float32)
    torch.save({f"layer.{i:02d}.weight": base + i for i in range(TENSORS)}, folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What threads write."""
    out = tmp_path_factory.mktemp("whole") / "out"
    api.convert(source / "model.pt", out, **FIELDS)
    return contents(out)


def stored(s3: FaultyProxy, folder: str = "out") -> dict[str, bytes]:
    return {k: s3.files().cat_file(f"{s3.bucket}/{folder}/{k}") for k in s3.found(folder)}


def sent(s3: FaultyProxy) -> list[str]:
    return [line for line in s3.lines if "partNumber" in line]


@pytest.mark.parametrize("more", [{}, {"format": "bin"}, {"dtype": "bfloat16"}], ids=str)
def test_from_and_to_urls_it_writes_what_threads_write(
    cluster: Cluster,
    s3: FaultyProxy,
    put: Callable[..., str],
    source: Path,
    tmp_path: Path,
    more: dict[str, str],
) -> None:
    url = f"{put(source)}/model.pt"
    cluster.calm(meet=True)
    there = api.convert(url, f"s3://{s3.bucket}/out", engine="ray", **FIELDS, **more)
    here = api.convert(source / "model.pt", tmp_path / "local", **FIELDS, **more)
    assert replace(there, folder=here.folder) == here
    assert stored(s3) == contents(tmp_path / "local")
    assert s3.uploads() == []
    attempts = cluster.attempts()
    assert len({node for node, _ in attempts}) == 2 and len(attempts) == len(set(attempts))
    sizes = [len(b) for n, b in stored(s3).items() if not n.endswith(".json")]
    assert len(sent(s3)) == sum(-(-size // (8 << 20)) for size in sizes)
    shown = [line for line in s3.lines if line.startswith("POST") and "uploadId" in line]
    index = next(i for i, line in enumerate(s3.lines) if ".index.json" in line and line.startswith("PUT"))
    assert len(shown) == len(sizes) and index > max(s3.lines.index(line) for line in shown)


def test_a_node_that_is_lost_costs_its_tasks_only(
    cluster: Cluster, s3: FaultyProxy, source: Path, whole: dict[str, bytes]
) -> None:
    doomed = cluster.add()

    def strike(node: Any) -> None:
        cluster.nodes.remove_node(node, allow_graceful=False)
        assert s3.found("out") == [JOURNAL]

    listen, lost = cluster.striking(doomed, strike)
    api.convert(source / "model.pt", f"s3://{s3.bucket}/out", engine="ray", listen=listen, **FIELDS)
    assert lost and stored(s3) == whole and s3.uploads() == []
    again = cluster.again()
    assert set(again) <= {task for node, task in cluster.attempts() if node == doomed.node_id}
    assert len(again) <= 1


def test_a_run_that_ends_early_is_resumed(
    cluster: Cluster,
    s3: FaultyProxy,
    source: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_RETRIES", 0)
    url = f"s3://{s3.bucket}/out"
    more = dict(engine="ray", workers=1, **FIELDS)

    def listen(event: Event) -> None:
        if isinstance(event, FileDone):
            (cluster.control / "deadly").touch()

    with pytest.raises(ClusterError, match="resume=True"):
        api.convert(source / "model.pt", url, listen=listen, **more)
    assert s3.found("out") == [JOURNAL]
    entries = [json.loads(line) for line in stored(s3)[JOURNAL].splitlines()]
    done = [e["file"] for e in entries if "file" in e]
    assert len(done) == 1 and s3.uploads() == [f"out/{done[0]}"]
    cluster.calm()
    s3.reset()
    report = api.convert(source / "model.pt", url, resume=True, **more)
    assert report.resumed == len(whole[done[0]])
    assert not any(done[0] in line for line in sent(s3))
    assert stored(s3) == whole and s3.uploads() == []


def test_what_a_cluster_began_threads_finish(
    cluster: Cluster, s3: FaultyProxy, source: Path, whole: dict[str, bytes]
) -> None:
    url = f"s3://{s3.bucket}/out"
    s3.faults = [Fault("503", lambda line: "00002-of" in line and "partNumber" in line, None)]
    with pytest.raises(CkptconvError, match=r"given up after 5 tries.*on node") as caught:
        api.convert(source / "model.pt", url, engine="ray", workers=1, **FIELDS)
    assert "00002-of" in str(caught.value.where)
    assert s3.found("out") == [JOURNAL] and len(s3.uploads()) == 1
    s3.faults = []
    report = api.convert(source / "model.pt", url, resume=True, **FIELDS)
    assert 0 < report.resumed < report.bytes_out
    assert stored(s3) == whole and s3.uploads() == []


class TestOtherCredentials:
    """Nodes have credentials and an endpoint of their own."""

    @pytest.fixture
    def worker_environment(self, s3: FaultyProxy) -> dict[str, str]:
        nobody = {"AWS_ENDPOINT_URL": "", "AWS_ACCESS_KEY_ID": "", "AWS_CONFIG_FILE": "/none"}
        return s3.environment() | nobody | {"AWS_SHARED_CREDENTIALS_FILE": "/none"}

    def test_a_node_without_them_is_named(self, cluster: Cluster, s3: FaultyProxy, source: Path) -> None:
        with pytest.raises(CkptconvError, match=r"node") as caught:
            api.convert(source / "model.pt", f"s3://{s3.bucket}/out", engine="ray", **FIELDS)
        assert "credentials" in str(caught.value)
        assert s3.found("out") == [] and s3.uploads() == []
