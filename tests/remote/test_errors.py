"""What goes wrong with a store is said in words, with the place and the next step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faulty import FaultyProxy
from running import ROOT, fails


@pytest.fixture
def nobody(s3: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials at all."""
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/none")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_that_is_not_there(s3: FaultyProxy, demo_run: Path) -> None:
    fails(1, "inspect", "s3://no-such-bucket/run", naming=("s3://no-such-bucket/run",))
    told = fails(
        1, "convert", demo_run, "s3://no-such-bucket/out", "--to", "hf", naming=("AWS_ENDPOINT_URL",)
    )
    assert "bucket does not exist" in told and "Errno" not in told


def test_no_credentials(s3: FaultyProxy, nobody: None, demo_run: Path) -> None:
    where = f"s3://{s3.bucket}/run"
    for words in (["inspect", where], ["convert", demo_run, where, "--to", "hf"], ["check", where]):
        fails(1, *words, naming=("no credentials", f"s3://{s3.bucket}", "AWS_ACCESS_KEY_ID"))


def test_no_server(s3: FaultyProxy, demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    from ckptconv.places import remote

    monkeypatch.setattr(remote, "_WAIT", 0.01)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    for words in (["inspect", "s3://bucket/run"], ["convert", demo_run, "s3://bucket/out", "--to", "hf"]):
        fails(1, *words, naming=("given up after 5 tries", "127.0.0.1:1", "reached"))


@pytest.mark.parametrize(
    "words", [["inspect", "s3://bucket/run"], ["convert", "{run}", "s3://b/out", "--to", "hf"]]
)
def test_no_package(demo_run: Path, words: list[str]) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from ckptconv.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, *(w.format(run=demo_run) for w in words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert found.returncode == 2 and "pip install 'ckptconv[remote]'" in found.stderr
    assert "Traceback" not in found.stderr
