"""Syncing ahead speeds the final sync up, and takes nothing away from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptconv.engine import flush
from ckptconv.engine.flush import WriteBehind


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_files_are_synced_and_no_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(flush, "_STEP", 100)
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    path = tmp_path / "file"
    path.write_bytes(b"x")
    before = _descriptors()
    behind = WriteBehind()
    for count in (60, 60, 10, 100, 1):
        behind.wrote(str(path), count)
    behind.wrote(str(tmp_path / "gone"), 1000)
    behind.close()
    assert synced == [str(path)] * 2
    assert _descriptors() <= before


def test_an_error_is_left_to_the_final_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports an error once per opened file: the descriptor synced must not be the writer's."""
    path = tmp_path / "file"
    monkeypatch.setattr(flush, "_STEP", 1)
    failed = []

    def fail(fd: int) -> None:
        os.lseek(fd, 7, os.SEEK_SET)  # a dup() shares the position, as it shares the error
        failed.append(fd)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with open(path, "wb", buffering=0) as file:
        file.write(b"abc")
        behind = WriteBehind()
        behind.wrote(str(path), 3)
        behind.close()
        assert failed and file.tell() == 3
