"""Read from and write to Google Cloud Storage, as far as its emulator goes.

Skipped unless these are installed: pip install gcsfs gcp-storage-emulator
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Read when gcsfs is imported; the emulator does not speak gRPC.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
gcsfs: Any = pytest.importorskip("gcsfs")
emulator: Any = pytest.importorskip("gcp_storage_emulator.server")

import ckptconv  # noqa: E402
from ckptconv.places.places import forget  # noqa: E402
from running import contents, succeeds  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An emulator with the bucket ``bucket``."""
    import fsspec

    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_port
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    monkeypatch.setattr(
        gcsfs.GCSFileSystem, "retries", 1
    )  # it does not know how to move, and is not asked again
    gcsfs.GCSFileSystem.clear_instance_cache()
    forget()
    yield fsspec.filesystem("gs", token="anon")
    server.stop()
    gcsfs.GCSFileSystem.clear_instance_cache()


def test_there_and_back(gcs: Any, demo_run: Path, tmp_path: Path) -> None:
    for path in demo_run.rglob("*"):
        if path.is_file():
            gcs.pipe_file(f"bucket/run/{path.relative_to(demo_run)}", path.read_bytes())
    ckptconv.convert(demo_run, tmp_path / "out", to="hf", max_shard_size="300KB")
    ckptconv.convert("gs://bucket/run", "gs://bucket/out", to="hf", max_shard_size="300KB")
    gcs.invalidate_cache()
    names = [k.removeprefix("bucket/out/") for k in gcs.find("bucket/out")]
    assert {n: gcs.cat_file(f"bucket/out/{n}") for n in names} == contents(tmp_path / "out")
    assert sum(n.startswith("model-") for n in names) > 1
    succeeds("verify-roundtrip", "gs://bucket/run", "gs://bucket/out")
    succeeds("check", "gs://bucket/out")
