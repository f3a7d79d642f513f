"""A Ray cluster writes what threads write; nodes, workers and the process that asks may die in the middle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptconv as api
from ckptconv.engine import ray as engine
from ckptconv.engine.events import Event, FileDone, Progress, Started, Stored
from ckptconv.engine.journal import JOURNAL
from ckptconv.engine.options import Options
from ckptconv.engine.run import run
from ckptconv.errors import ClusterError, InputChangedError, MismatchError, OutputError
from ckptconv.relations import Box, Pair
from ray_cluster import Cluster
from running import ROOT, contents, final_names, succeeds

ray: Any = pytest.importorskip("ray")
pytestmark = pytest.mark.ray

TENSORS, ELEMENTS, FILES = 12, 1 << 20, 6
FIELDS: dict[str, Any] = dict(to="hf", assets=False, max_shard_size="9MB")
FLAGS = ("--to", "hf", "--no-assets", "--max-shard-size", "9MB")


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of 50 MB, every tensor unlike the others."""
    path = tmp_path_factory.mktemp("big") / "model.pt"
    base = torch.arange(ELEMENTS, dtype=torch.float32)
    torch.save({f"layer.{i:02d}.weight": base + i for i in range(TENSORS)}, path)
    return path


@pytest.fixture(scope="module")
def whole(big: Path) -> dict[str, bytes]:
    """What threads write."""
    api.convert(big, big.parent / "whole", **FIELDS)
    return contents(big.parent / "whole")


@pytest.mark.parametrize("more", [{}, {"format": "bin"}, {"dtype": "bfloat16"}], ids=str)
def test_writes_what_threads_write(cluster: Cluster, big: Path, tmp_path: Path, more: dict[str, str]) -> None:
    events: list[Event] = []
    cluster.calm(meet=True)
    there = api.convert(big, tmp_path / "ray", engine="ray", listen=events.append, **FIELDS, **more)
    here = api.convert(big, tmp_path / "local", **FIELDS, **more)
    assert replace(there, folder=here.folder) == here
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    attempts = cluster.attempts()
    assert len({node for node, _ in attempts}) == 2
    assert len(attempts) == len(set(attempts)) > len(here.files)
    assert isinstance(events[0], Started) and isinstance(events[-1], Stored)
    assert sum(e.count for e in events if isinstance(e, Progress)) == here.bytes_out
    assert {e.name: e.digest for e in events if isinstance(e, FileDone)} == here.files


def test_a_relative_path_is_the_drivers(
    cluster: Cluster, big: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").symlink_to(big.parent)
    monkeypatch.chdir(tmp_path)
    api.convert(Path("source", big.name), "out", engine="ray", workers=1, **FIELDS)
    assert contents(tmp_path / "out") == whole


def _kill_node(cluster: Cluster, node: Any) -> None:
    cluster.nodes.remove_node(node, allow_graceful=False)


def _kill_processes(cluster: Cluster, node: Any) -> None:
    """Kill all that runs on a node at once, as a loss of power does; Ray is left to notice."""
    import psutil
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    raylet = psutil.Process(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
    for process in [*raylet.children(recursive=True), raylet]:
        process.kill()


@pytest.mark.parametrize("kill", [_kill_node, _kill_processes])
def test_a_node_that_is_lost_costs_its_tasks_only(
    cluster: Cluster,
    big: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    kill: Callable[[Cluster, Any], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    doomed = cluster.add()
    listen, lost = cluster.striking(doomed, lambda node: kill(cluster, node))
    report = api.convert(big, tmp_path / "out", engine="ray", listen=listen, **FIELDS)
    assert contents(tmp_path / "out") == whole
    assert report.bytes_out == sum(len(b) for n, b in whole.items() if n.endswith(".safetensors"))
    again = cluster.again()
    assert set(again) <= {task for node, task in cluster.attempts() if node == doomed.node_id}
    assert len(again) <= 1
    assert lost
    assert capsys.readouterr() == ("", "")


def test_a_worker_that_is_killed_costs_its_task_only(
    cluster: Cluster, big: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (cluster.control / "die once").touch()
    api.convert(big, tmp_path / "out", engine="ray", **FIELDS)
    assert contents(tmp_path / "out") == whole
    assert list(cluster.again().values()) == [1]


def test_a_task_that_kills_every_worker_ends_the_run_which_resumes(
    cluster: Cluster,
    big: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_RETRIES", 1)
    out = tmp_path / "out"

    def listen(event: Event) -> None:
        if isinstance(event, FileDone):
            (cluster.control / "deadly").touch()

    with pytest.raises(ClusterError, match="2 times") as caught:
        api.convert(big, out, engine="ray", listen=listen, **FIELDS)
    assert "resume=True" in str(caught.value)
    assert final_names(out) == []
    done = [p.name for p in out.glob("*.part")]
    assert 0 < len(done) < FILES
    report = api.convert(big, out, resume=True, **FIELDS)  # on threads
    assert report.resumed == sum(len(whole[name.removesuffix(".part")]) for name in done)
    assert contents(out) == whole


def test_an_error_of_a_task_is_that_of_a_thread(cluster: Cluster, big: Path, tmp_path: Path) -> None:
    plan = api.plan(big, **FIELDS)
    third = next(p.left for p in plan.relation.pairs if p.right.tensor == "layer.03.weight")
    copy = Pair(third, Box.whole("layer.07.weight", (ELEMENTS,)), left_copy=True)
    plan = replace(plan, relation=replace(plan.relation, pairs=(*plan.relation.pairs, copy)))
    errors = []
    for options in (Options(workers=1), Options(workers=1, engine="ray")):
        with pytest.raises(MismatchError, match=r"layer\.07\.weight\[0\]") as caught:
            run(plan, tmp_path / "out", replace(options, overwrite=True))
        errors.append(caught.value)
        assert final_names(tmp_path / "out") == []
    assert str(errors[0]) == str(errors[1]) and errors[1].exit_code == 3


def test_a_source_that_changed_is_refused_by_the_workers(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "model.pt"
    torch.save({"w": torch.ones(5)}, source)
    plan = api.plan(source, **FIELDS)
    os.utime(source, ns=(1, 1))
    with pytest.raises(InputChangedError, match="changed") as caught:
        run(plan, tmp_path / "out", Options(engine="ray"))
    assert caught.value.where == str(source)
    assert len(cluster.attempts()) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_part_that_cannot_be_written_is_an_output_error(
    cluster: Cluster, big: Path, tmp_path: Path
) -> None:
    out, gone = tmp_path / "out", []

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and not gone:
            gone.append(shutil.move(out, tmp_path / "moved"))

    with pytest.raises((ClusterError, OutputError)):
        api.convert(big, out, engine="ray", workers=1, listen=listen, **FIELDS)


_DRIVER = """
import logging, ray, sys
ray.init(sys.argv.pop(1), log_to_driver=False, logging_level=logging.CRITICAL,
         runtime_env={"worker_process_setup_hook": "ray_workers.setup"})
from ckptconv.cli import main
main()
"""


@pytest.mark.parametrize(
    ("how", "then"), [(signal.SIGINT, "local"), (signal.SIGKILL, "ray")], ids=["interrupted", "killed"]
)
def test_a_driver_that_ends_is_resumed_by_either_engine(
    nodes: Cluster, big: Path, whole: dict[str, bytes], tmp_path: Path, how: signal.Signals, then: str
) -> None:
    nodes.calm(slow=0.4)
    out = tmp_path / "out"
    words = ["convert", str(big), str(out), *FLAGS, "--engine", "ray"]
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, nodes.address, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not _done(out):
        time.sleep(0.01)
    process.send_signal(how)
    stdout, stderr = process.communicate(timeout=60)
    if how is signal.SIGINT:
        assert process.returncode == 130 and b"--resume" in stderr and b"Traceback" not in stderr
        assert len(list(out.glob("*.part"))) == _done(out)
    else:
        assert process.returncode == -how
        assert b"ended without a word" in stderr and b"--resume" in stderr
    assert stdout == b"" and final_names(out) == []
    assert 0 < _done(out) < FILES
    nodes.calm()
    more = ["--engine", "ray", "--address", nodes.address] if then == "ray" else []
    result = succeeds("convert", big, out, *FLAGS, *more, "--resume", "--json")
    report = json.loads(result.out)
    assert 0 < report["resumed_bytes"] < report["bytes"]
    assert contents(out) == whole


@pytest.mark.parametrize("kind", ["machine", "head alone"])
def test_a_head_that_is_lost_is_told_of_and_the_run_resumed(
    nodes: Cluster, big: Path, whole: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    """Ray ends who asks when the machine of the head is gone with its store, or the head does not answer."""
    import psutil

    doomed, out = Cluster(nodes.control), tmp_path / "out"
    doomed.calm(slow=0.4)
    patience = "import ckptconv.engine.ray as e; e._SILENT, e._LOOK, e._STOPPING = 2, 0.2, 1;"
    words = ["convert", str(big), str(out), *FLAGS, "--engine", "ray"]
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", patience + _DRIVER, doomed.address, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        while process.poll() is None and not _done(out):
            time.sleep(0.01)
        doomed.calm(slow=8)
        for name, running in doomed.nodes.head_node.all_processes.items():
            for one in running:
                if kind == "machine" or name == "gcs_server":
                    psutil.Process(one.process.pid).kill()
        stdout, stderr = process.communicate(timeout=50)
    finally:
        doomed.nodes.shutdown()
    assert process.returncode == 1 and stdout == b""
    assert b"the head of the cluster is lost" in stderr and b"Traceback" not in stderr
    assert b"--resume" in stderr and str(out).encode() in stderr
    done = _done(out)
    told = re.search(rf"(\d) of {FILES} files whole and kept, \d begun and lost".encode(), stderr)
    assert 0 < done < FILES and told and int(told[1]) in (done - 1, done)  # the journal comes first
    assert final_names(out) == []
    nodes.calm()
    result = succeeds(
        "convert", big, out, *FLAGS, "--engine", "ray", "--address", nodes.address, "--resume", "--json"
    )
    assert json.loads(result.out)["resumed_bytes"] > 0
    assert contents(out) == whole


def _done(out: Path) -> int:
    try:
        return (out / JOURNAL).read_text().count('"file"')
    except FileNotFoundError:
        return 0


def test_the_command_line_prints_nothing_of_rays(
    nodes: Cluster, big: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    nodes.calm()
    words = ["convert", str(big), str(tmp_path / "out"), *FLAGS]
    process = subprocess.run(
        [sys.executable, "-m", "ckptconv", *words, "--engine", "ray", "--address", nodes.address, "--verify"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("done")
    assert "ray" not in process.stderr.lower() and "INFO" not in process.stderr
    found = contents(tmp_path / "out")
    assert "ckptconv-verify.json" in found
    assert {n: b for n, b in found.items() if n in whole} == whole


def test_who_does_not_belong_to_the_cluster_is_a_client(
    nodes: Cluster, big: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("grpc")
    nodes.calm()
    flags = [*FLAGS, "--engine", "ray", "--address", nodes.client, "--json"]
    words = ["convert", str(big), str(tmp_path / "out"), *flags]
    process = subprocess.run(
        [sys.executable, "-m", "ckptconv", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["bytes"] > 0 and process.stderr == ""
    assert contents(tmp_path / "out") == whole


def test_a_client_whose_server_does_not_start_tries_again(
    nodes: Cluster, big: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy head the server that Ray forks for a client may die as it starts: Ray 2.60 tells it so."""
    told = (
        "Initialization failure from server:\nTraceback (most recent call last):\n"
        '  File "ray/util/client/server/proxier.py", line 396, in start_specific_server\n'
        "psutil.ZombieProcess: PID still exists but it's a zombie (pid=7961)\n"
    )
    inner, failures = ray.init, [ConnectionAbortedError(told)] * 2

    def init(address: str, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return inner(nodes.address, **more)

    nodes.calm()
    with socket.create_server(("127.0.0.1", 0)) as head:
        flags = dict(engine="ray", address=f"ray://127.0.0.1:{head.getsockname()[1]}", **FIELDS)
        monkeypatch.setattr(ray, "init", init)
        api.convert(big, tmp_path / "out", **flags)
        assert contents(tmp_path / "out") == whole and not failures
        failures[:] = [ConnectionAbortedError(told)] * 99
        with pytest.raises(ClusterError, match=r"failure from server: psutil\.ZombieProcess: PID still"):
            api.convert(big, tmp_path / "never", **flags)
    assert 90 < len(failures) < 99


def test_a_client_without_its_package_is_told_which(nodes: Cluster, big: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['grpc'] = None; from ckptconv.cli import main; main()"
    flags = [*FLAGS, "--engine", "ray", "--address", nodes.client]
    process = subprocess.run(
        [sys.executable, "-c", code, "convert", str(big), str(tmp_path / "out"), *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 2 and "pip install 'ray[client]'" in process.stderr
    assert "Traceback" not in process.stderr and not (tmp_path / "out").exists()


def test_no_cluster_is_an_error_that_says_how_to_start_one(tmp_path: Path) -> None:
    source = tmp_path / "model.pt"
    torch.save({"w": torch.ones(5)}, source)
    with pytest.raises(ClusterError, match="cannot connect") as caught:
        api.convert(source, tmp_path / "out", engine="ray", address="127.0.0.1:1", **FIELDS)
    assert "ray start --head" in str(caught.value) and caught.value.exit_code == 1
    assert list((tmp_path / "out").iterdir()) == []
