"""Start an S3 server of its own for the tests, and a proxy before it that counts requests and breaks some."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty import FaultyProxy

pytest.importorskip("s3fs")
pytest.importorskip("moto")

_SERVER = """
from moto.server import ThreadedMotoServer
import sys, threading
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.terminate()


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy with a fresh bucket behind it, which all URLs of the test go through."""
    proxy = FaultyProxy(s3_port)
    for name, value in proxy.environment().items():
        monkeypatch.setenv(name, value)
    import s3fs

    from ckptconv.storage.places import forget

    s3fs.S3FileSystem.clear_instance_cache()
    forget()
    proxy.start()
    proxy.bucket = f"bucket-{time.monotonic_ns()}"
    proxy.files().mkdir(proxy.bucket)
    proxy.reset()
    yield proxy
    proxy.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def put(s3: FaultyProxy):
    """Upload a folder; return its URL."""

    def upload(folder: Path, name: str = "in") -> str:
        fs = s3.files()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                fs.pipe_file(f"{s3.bucket}/{name}/{path.relative_to(folder)}", path.read_bytes())
        s3.reset()
        return f"s3://{s3.bucket}/{name}"

    return upload


def pytest_configure() -> None:
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
