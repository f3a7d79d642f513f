"""Write to an S3 server: the bytes of the local run, and nothing to be seen before all of it is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptconv
from ckptconv.errors import CkptconvError, InputChangedError, OutputError, UsageError
from ckptconv.places import objects, remote
from ckptconv.places.places import forget
from ckptconv.verify import certificate
from faulty import Fault, FaultyProxy
from running import start

JOURNAL = ".ckptconv-journal"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WAIT", 0.01)


@pytest.fixture(scope="session")
def model(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo run as a model in four shards."""
    out = tmp_path_factory.mktemp("model") / "out"
    ckptconv.convert(demo_run, out, to="hf", max_shard_size="100KB")
    assert len(list(out.glob("model-*.safetensors"))) == 4
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stored(s3: FaultyProxy, folder: str = "out") -> dict[str, bytes]:
    return {k: s3.files().cat_file(f"{s3.bucket}/{folder}/{k}") for k in s3.found(folder)}


TARGETS: list[dict[str, Any]] = [
    {"to": "hf", "max_shard_size": "100KB", "dtype": "bfloat16"},
    {"to": "hf", "format": "bin"},
    {"to": "megatron", "sizes": {"tp": 2, "pp": 2}},
    {"to": "torch_dist"},
    {"to": "mindformers"},
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.get("format", t["to"]))
def test_there_and_back(s3: FaultyProxy, put, model: Path, tmp_path: Path, target: dict[str, Any]) -> None:
    url, out = put(model), f"s3://{s3.bucket}/out"
    ckptconv.convert(model, tmp_path / "out", **target)
    ckptconv.convert(url, out, **target)
    assert stored(s3) == contents(tmp_path / "out")
    assert s3.uploads() == []
    again = {"config": str(model), "tokenizer": str(model), "to": "hf"}
    ckptconv.convert(tmp_path / "out", tmp_path / "back", **again)
    s3.reset()
    ckptconv.convert(out, tmp_path / "back-from-s3", **again)
    assert contents(tmp_path / "back-from-s3") == contents(tmp_path / "back")
    files = len(contents(tmp_path / "out"))
    assert s3.count()["GET"] <= 12 + 4 * files and set(s3.count()) == {"GET"}


def test_order_requests_and_certificate(s3: FaultyProxy, model: Path) -> None:
    out = f"s3://{s3.bucket}/out"
    ckptconv.convert(model, out, to="hf", max_shard_size="100KB")
    seen = [
        line.split("/out/")[1].split("?")[0].split(" ")[0]
        for line in s3.lines
        if re.match(r"POST .*/out/.*uploadId=|PUT .*/out/(?!.*partNumber)", line)
    ]
    shown = [name for name in seen if name != JOURNAL]
    assert [n.startswith("model-") for n in shown[:4]] == [True] * 4
    assert shown[-2:] == ["model.safetensors.index.json", "config.json"]
    # Of each file: begin, one part, complete; of the journal: three entries a file and two more.
    assert s3.count()["POST"] <= 2 * 4 and s3.count()["PUT"] <= 4 + 3 * 4 + 2 + 8
    result = ckptconv.verify_roundtrip(model, out, certify=True)
    assert result.ok and "ckptconv-verify.json" in s3.found("out")
    assert certificate.check(out).ok  # type: ignore[arg-type]
    s3.files().pipe_file(f"{s3.bucket}/out/tokenizer.json", b"{}")
    assert "tokenizer.json" in certificate.check(out).wrong  # type: ignore[arg-type]


def test_a_large_file_is_sent_in_parts(s3: FaultyProxy, put, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": rng.integers(0, 255, (1024, 2560), np.uint8) for i in range(8)}
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    url = put(tmp_path / "in")
    ckptconv.convert(tmp_path / "in", tmp_path / "out", to="hf", assets=False)
    ckptconv.convert(url, f"s3://{s3.bucket}/out", to="hf", assets=False, workers=2)
    assert stored(s3) == contents(tmp_path / "out")
    size = (tmp_path / "in" / "model.safetensors").stat().st_size
    sent = [line for line in s3.lines if "partNumber" in line]
    assert len(sent) == -(-size // objects.PART) == 3
    read = [n for path, n in s3.ranges if path.endswith("/in/model.safetensors")]
    assert sum(read) <= 1.1 * size and len(read) <= 16


def test_parts_grow_with_the_file() -> None:
    assert objects.part_size(0) == objects.part_size(5 << 30) == 8 << 20
    for size in (100 << 30, 1 << 40, 5 << 40):
        part = objects.part_size(size)
        assert part % (4 << 20) == 0 and -(-size // part) <= 10_000


@pytest.mark.parametrize("kind", ["503", "reset"])
def test_a_fault_is_tried_again(s3: FaultyProxy, model: Path, tmp_path: Path, kind: str) -> None:
    target = TARGETS[0]
    ckptconv.convert(model, tmp_path / "out", **target)
    s3.faults = [
        Fault(kind, lambda line: "partNumber" in line, 3),
        Fault(kind, lambda line: line.startswith("POST") and "uploadId" in line, 2),
        Fault(kind, lambda line: line.startswith("PUT") and "config.json" in line, 1),
        Fault(kind, lambda line: line.startswith("PUT") and JOURNAL in line, 2),
    ]
    ckptconv.convert(model, f"s3://{s3.bucket}/out", **target)
    assert [f.times for f in s3.faults] == [0, 0, 0, 0]
    assert stored(s3) == contents(tmp_path / "out") and s3.uploads() == []


def test_a_server_that_takes_no_parts_leaves_nothing(s3: FaultyProxy, model: Path) -> None:
    s3.faults = [Fault("503", lambda line: "partNumber" in line, None)]
    with pytest.raises(CkptconvError, match="given up after 5 tries"):
        ckptconv.convert(model, f"s3://{s3.bucket}/out", to="hf")
    s3.faults = []
    assert s3.found() == [] and s3.uploads() == []


def test_a_server_that_never_answers_leaves_nothing(
    s3: FaultyProxy, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.3)  # 15 s
    s3.faults = [Fault("stall", lambda line: "partNumber" in line, None)]
    with pytest.raises(CkptconvError, match=r"given up after 5 tries: .*[Tt]ime"):
        ckptconv.convert(model, f"s3://{s3.bucket}/out", to="hf", max_shard_size="100KB")
    s3.faults = []
    assert s3.found() == [] and s3.uploads() == []


def test_a_spool_without_space_is_refused_before_anything_is_sent(
    s3: FaultyProxy, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(model)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(OutputError, match="only 100000 are free") as caught:
        ckptconv.convert(model, f"s3://{s3.bucket}/out", to="hf", format="bin")
    assert "TMPDIR" in str(caught.value)
    assert s3.found() == [] and not [line for line in s3.lines if line.startswith("POST")]
    ckptconv.convert(model, f"s3://{s3.bucket}/out", to="hf")  # nothing is spooled


def test_a_changed_input_is_noticed_before_anything_is_seen(
    s3: FaultyProxy, put, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(model)
    made = ckptconv.plan(url, to="hf")
    from ckptconv.engine.options import Options
    from ckptconv.engine.run import run

    path = f"{s3.bucket}/in/model-00001-of-00004.safetensors"
    s3.files().pipe_file(path, s3.files().cat_file(path)[:-1] + b"\xff")
    with pytest.raises(InputChangedError):
        run(made, Path(f"s3://{s3.bucket}/out"), Options())
    assert [k for k in s3.found() if not k.startswith("in/") and k != f"out/{JOURNAL}"] == []


def run_command(s3: FaultyProxy, *arguments: str) -> subprocess.Popen[Any]:
    return start(*arguments, env=os.environ | s3.environment(), stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_and_resumed(s3: FaultyProxy, model: Path, tmp_path: Path, sent: int) -> None:
    flags = ["--to", "hf", "--max-shard-size", "100KB", "--workers", "1", "--quiet"]
    ckptconv.convert(model, tmp_path / "out", to="hf", max_shard_size="100KB")
    url = f"s3://{s3.bucket}/out"
    s3.faults = [Fault("delay", lambda line: "partNumber" in line, None)]
    with run_command(s3, "convert", str(model), url, *flags) as running:
        while sum("partNumber" in line for line in s3.lines) < 3:
            assert running.poll() is None, running.stdout and running.stdout.read()
            time.sleep(0.05)
        running.send_signal(sent)
        running.wait(30)
    assert running.returncode == (130 if sent == signal.SIGINT else -9)
    assert s3.found("out") == [JOURNAL]
    journal = [json.loads(x) for x in stored(s3)[JOURNAL].decode().splitlines()]
    whole = [e["file"] for e in journal if "file" in e]
    assert 1 <= len(whole) < 4
    if sent == signal.SIGINT:  # of a process that was killed the last upload stays, until the next run
        assert len(s3.uploads()) == len(whole)
    with pytest.raises(OutputError, match="interrupted run"):
        ckptconv.convert(model, url, to="hf", max_shard_size="100KB")
    s3.reset()
    with run_command(s3, "convert", str(model), url, *flags, "--resume") as again:
        assert again.wait(60) == 0, again.stdout and again.stdout.read()
    assert sum("partNumber" in line for line in s3.lines) == 4 - len(whole)
    assert stored(s3) == contents(tmp_path / "out") and s3.uploads() == []


def test_stopped_while_names_are_given(s3: FaultyProxy, model: Path, tmp_path: Path) -> None:
    target = {"to": "hf", "max_shard_size": "100KB"}
    ckptconv.convert(model, tmp_path / "out", **target)
    url = f"s3://{s3.bucket}/out"
    s3.faults = [Fault("503", lambda line: line.startswith("PUT") and "tokenizer.json" in line, None)]
    with pytest.raises(CkptconvError):
        ckptconv.convert(model, url, **target)
    assert "config.json" not in s3.found("out")
    with pytest.raises(CkptconvError, match="stopped before it was done"):
        ckptconv.open(url)
    s3.faults = []
    s3.reset()
    ckptconv.convert(model, url, **target, resume=True)
    assert not any("partNumber" in line for line in s3.lines)
    assert stored(s3) == contents(tmp_path / "out") and s3.uploads() == []


def test_a_folder_that_is_not_empty(s3: FaultyProxy, put, model: Path, tmp_path: Path) -> None:
    url = put(model, "out")
    with pytest.raises(OutputError, match="not empty"):
        ckptconv.convert(model, url, to="hf")
    assert JOURNAL not in s3.found("out") and s3.uploads() == []
    ckptconv.convert(model, url, to="hf", overwrite=True)
    ckptconv.convert(model, tmp_path / "out", to="hf")
    assert stored(s3) == contents(tmp_path / "out")  # the shards of the old model are gone
    with pytest.raises(OutputError, match="is read from"):
        ckptconv.convert(url, url + "/", to="hf", overwrite=True)


def test_two_runs_that_begin_at_once(s3: FaultyProxy) -> None:
    objects.claim(f"s3://{s3.bucket}/out/x", b"one")
    with pytest.raises(FileExistsError):
        objects.claim(f"s3://{s3.bucket}/out/x", b"two")
    s3.faults = [Fault("reset", lambda line: line.startswith("PUT"), 1)]  # done, but the answer is lost
    objects.claim(f"s3://{s3.bucket}/out/y", b"one")
    assert s3.files().cat_file(f"{s3.bucket}/out/y") == b"one"


def test_a_store_without_multipart_uploads(model: Path, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    forget()
    for target in TARGETS[:3]:
        out = tmp_path / target.get("format", target["to"])
        ckptconv.convert(model, out, **target)
        ckptconv.convert(model, f"memory://{out.name}", **target)
        found = {k.removeprefix(f"/{out.name}/"): fs.cat_file(k) for k in fs.find(f"/{out.name}")}
        assert found == contents(out)
    fs.store.clear()


@pytest.mark.parametrize("url", ["hf://org/model", "https://host/model"])
def test_a_place_that_cannot_be_written(model: Path, url: str) -> None:
    with pytest.raises(UsageError, match="not written to"):
        ckptconv.convert(model, url, to="hf")
