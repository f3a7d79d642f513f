"""A part of a plan is enough to write its file; a worker that sees other files than the driver says so."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ckptconv as api
from ckptconv.engine import part
from ckptconv.engine.fill import pairs_by_tensor
from ckptconv.engine.journal import JOURNAL, Journal
from ckptconv.engine.part import Failure, Job, part_of, unshared_input, work
from ckptconv.engine.sink import create
from ckptconv.engine.task import Result, Task, block_count
from ckptconv.errors import ClusterError, FormatError, InputChangedError
from ckptconv.places.places import forget, place
from ckptconv.plans.plan import Plan
from running import ROOT, fails


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two files of three tensors in all."""
    tensors = {n: torch.full((1000,), float(i)) for i, n in enumerate("abc")}
    torch.save(tensors, tmp_path / "model.pt")
    return api.plan(tmp_path / "model.pt", to="hf", assets=False, max_shard_size="8500B")


@pytest.fixture
def job(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(part, "_PATIENCE", ())
    out = tmp_path / "out"
    out.mkdir()
    with Journal(out, "plan", resume=False) as journal:
        journal.mark("this run")
        for file in plan.files:
            create(out / (file.name + ".part"), file.layout.size)
        yield Job("this run", str(out), 1 << 20)
    close_all()


def close_all() -> None:
    while part._kept:
        part._kept.popitem()[1].sources.close()


def do(job: Job, plan: Plan, file: int) -> object:
    one = pickle.loads(pickle.dumps(part_of(plan, [file], pairs_by_tensor(plan.relation))))
    found = pickle.loads(pickle.dumps(work(job, lambda: one, (file,), [Task(file, 0, 1)])))
    return found if isinstance(found, Failure) else found[0]


def test_parts_write_what_the_plan_does(plan: Plan, job: Job, tmp_path: Path) -> None:
    api.convert(tmp_path / "model.pt", tmp_path / "whole", to="hf", assets=False, max_shard_size="8500B")
    for i, file in enumerate(plan.files):
        one = part_of(plan, [i], pairs_by_tensor(plan.relation))
        assert set(one.stored) == {p.left.tensor for p in one.relation.pairs} and len(one.stored) in (1, 2)
        assert isinstance(do(job, plan, i), Result)
        written = Path(job.folder, file.name + ".part").read_bytes()
        assert written == (tmp_path / "whole" / file.name).read_bytes()


def test_paths_of_a_part_are_absolute(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = api.plan("model.pt", to="hf", assets=False)
    one = part_of(here, [0], pairs_by_tensor(here.relation))
    assert {i.path for i in one.inputs} == {str(tmp_path / "model.pt")}
    assert {e.path for s in one.stored.values() for e in s.extents} == {str(tmp_path / "model.pt")}


def test_urls_of_a_part_stay_as_they_are(plan: Plan) -> None:
    url = "s3://bucket/model.pt"
    stored = {k: replace(s, extents=(s.extents[0]._replace(path=url),)) for k, s in plan.stored.items()}
    there = replace(plan, stored=stored, inputs=(replace(plan.inputs[0], path=url),))
    one = part_of(there, [0], pairs_by_tensor(there.relation))
    assert [i.path for i in one.inputs] == [url]
    assert {e.path for s in one.stored.values() for e in s.extents} == {url}


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_file_behind_a_url_is_sent_by_who_makes_it(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Where parts cannot come from many processes, one task sends the file, sealed if it has to be."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(part, "_PATIENCE", ())
    from ckptconv.engine.remotejournal import RemoteJournal
    from ckptconv.engine.remotesink import Outputs

    source, fields = tmp_path / "model.pt", dict(to="hf", assets=False, format=format)
    api.convert(source, tmp_path / "whole", **fields)
    fs, folder, plan = fsspec.filesystem("memory"), place("memory://sent"), api.plan(source, **fields)
    fs.store.clear()
    forget()
    journal = RemoteJournal(folder, "plan", resume=False)
    journal.mark("this run")
    outputs = Outputs(plan, folder, tmp_path, journal)
    (file,) = plan.files
    token = outputs.begin(file).token()
    assert outputs.blocks_apart(file) == block_count(file.layout.size)
    one, job = part_of(plan, [0], pairs_by_tensor(plan.relation)), Job("this run", str(folder), 1 << 20)
    assert isinstance(
        work(replace(job, run="another"), lambda: one, (0,), [Task(0, 0, 1)], {0: token}), Failure
    )
    (found,) = work(job, lambda: one, (0,), [Task(0, 0, outputs.blocks_apart(file))], {0: token})
    assert isinstance(found, Result) and all(found.digests) and found.sent
    assert sorted(fs.find("/sent")) == [f"/sent/{JOURNAL}", f"/sent/{file.name}.part"]
    outputs.took(file, found.sent)
    outputs.whole(file)
    outputs.complete(file.name)
    assert fs.cat_file(f"/sent/{file.name}") == (tmp_path / "whole" / file.name).read_bytes()
    fs.store.clear()
    close_all()


def test_an_output_folder_that_is_not_the_runs_is_refused(plan: Plan, job: Job, tmp_path: Path) -> None:
    """One of the same name on another disk, even with what an earlier run left there."""
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere, job.folder):
        found = do(replace(job, folder=str(folder), run="another run"), plan, 0)
        assert isinstance(found, Failure) and isinstance(found.error, ClusterError)
        assert str(folder) == found.error.where and "share" in str(found.error)


def test_a_task_that_outlives_its_run_leaves_the_next_alone(plan: Plan, job: Job) -> None:
    """Its process has worked for the run, whose folder another run has since taken over."""
    assert isinstance(do(job, plan, 0), Result)
    part = Path(job.folder, plan.files[0].name + ".part")
    part.write_bytes(bytes(plan.files[0].layout.size))
    Path(job.folder, JOURNAL).unlink()  # with which a run ends
    with Journal(Path(job.folder), "another plan", resume=False) as journal:
        journal.mark("another run")
        found = do(job, plan, 0)
    assert isinstance(found, Failure) and isinstance(found.error, ClusterError)
    assert not any(part.read_bytes())


def test_a_file_that_is_not_there_is_not_made(plan: Plan, job: Job) -> None:
    path = Path(job.folder, plan.files[0].name + ".part")
    for change in (lambda: os.truncate(path, 5), path.unlink):
        change()
        found = do(job, plan, 0)
        assert isinstance(found, Failure) and isinstance(found.error, ClusterError)
        assert found.error.where == str(path)
    assert not path.exists()


def test_another_version_is_refused(plan: Plan, job: Job) -> None:
    found = do(replace(job, version="0.0.1"), plan, 0)
    assert isinstance(found, Failure) and "0.0.1" in found.error.args[0]


def test_a_source_that_is_other_on_the_node_is_named(plan: Plan, job: Job, tmp_path: Path) -> None:
    """The node has another file at the path; the driver's is as it was when the plan was made."""
    source = tmp_path / "model.pt"
    good = os.stat(source)
    os.utime(source, ns=(1, 1))
    found = do(job, plan, 0)
    assert isinstance(found, Failure) and isinstance(found.error, InputChangedError)
    assert unshared_input(found, plan.inputs) is found.error  # it has changed for the driver as well
    os.utime(source, ns=(good.st_atime_ns, good.st_mtime_ns))
    error = unshared_input(found, plan.inputs)
    assert isinstance(error, ClusterError) and error.where == str(source)
    assert found.node in error.message and "share" in str(error)
    other = Failure(FormatError("x", where=tmp_path), "node")
    assert unshared_input(other, plan.inputs) is other.error


def test_without_ray_the_command_line_says_what_to_install(tmp_path: Path, plan: Plan) -> None:
    code = "import sys; sys.modules['ray'] = None; from ckptconv.cli import main; main()"
    words = ["convert", str(tmp_path / "model.pt"), str(tmp_path / "out"), "--to", "hf", "--engine", "ray"]
    found = subprocess.run(
        [sys.executable, "-c", code, *words, "--no-assets"], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 2
    assert "pip install 'ckptconv[ray]'" in found.stderr
    assert not (tmp_path / "out").exists()


def test_an_address_without_a_cluster_is_refused(tmp_path: Path, plan: Plan) -> None:
    fails(
        2, "convert", tmp_path / "model.pt", tmp_path / "out", "--to", "hf", "--address", "auto",
        naming=("--engine ray",),
    )  # fmt: skip
