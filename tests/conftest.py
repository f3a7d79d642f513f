"""Set what every test shares: no network, no time limit on examples, where the fixtures lie, an S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from faulty import FaultyProxy

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A loaded machine is slow by fits, which says nothing about the code.
settings.register_profile("ckptconv", deadline=None, print_blob=True)
settings.load_profile("ckptconv")

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of committed checkpoints."""
    return FIXTURES


@pytest.fixture(scope="session")
def demo_run() -> Path:
    """A run as HF Trainer leaves it: ZeRO-3 on two ranks, config and tokenizer beside ``latest``."""
    return FIXTURES / "demo-run" / "checkpoint-2"


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
    """The port of an S3 server of its own, a process."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
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

    from ckptconv.places.places import forget

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
def put(s3: FaultyProxy) -> Callable[..., str]:
    """Upload a folder; return its URL."""

    def upload(folder: Path, name: str = "in") -> str:
        fs = s3.files()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                fs.pipe_file(f"{s3.bucket}/{name}/{path.relative_to(folder)}", path.read_bytes())
        s3.reset()
        return f"s3://{s3.bucket}/{name}"

    return upload
