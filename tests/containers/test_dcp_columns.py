"""What records and chunks say is the same, taken all at once or one by one."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from ckptconv.containers.dcp import columns, metadata
from ckptconv.containers.torch import quick
from ckptconv.errors import CkptconvError

pytest.importorskip("torch")
import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

ROWS = 4


class Twice(dcp.MetadataIndex):
    """An index that is no other one's equal."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _metadata(tensors: int, protocol: int, change: Any = None) -> bytes:
    """Return what torch writes of tensors cut by rows, the last row empty, and an object beside them."""
    state: dict[str, Any] = {"step": dcp.BytesStorageMetadata()}
    stored: dict[Any, Any] = {dcp.MetadataIndex("step"): _StorageInfo("__0_0.distcp", 0, 10)}
    for t in range(tensors):
        name = f"layers.{t}.w"
        chunks = []
        for row in range(ROWS + 1):
            offsets, sizes = torch.Size((row, 0)), torch.Size((1 if row < ROWS else 0, t + 1))
            chunks.append(dcp.ChunkStorageMetadata(offsets=offsets, sizes=sizes))
            if row < ROWS:
                where = _StorageInfo(f"__{row}_0.distcp", 1000 * t, 900)
                stored[dcp.MetadataIndex(name, offsets, row)] = where
        properties = dcp.TensorProperties(dtype=torch.bfloat16)
        state[name] = dcp.TensorStorageMetadata(properties, torch.Size((ROWS, t + 1)), chunks)
    if change is not None:
        change(state, stored)
    return pickle.dumps(dcp.Metadata(state, None, stored), protocol)


def _told(data: bytes, path: Path) -> object:
    path.write_bytes(data)
    try:
        return metadata.read_metadata(path)
    except CkptconvError as error:
        return type(error), error.message, error.hint


def _both(data: bytes, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, object]:
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "_LARGE", 0)
        at_once = _told(data, path)
        patch.setattr(metadata, "entries_alike", lambda stored: None)
        patch.setattr(metadata, "chunks_alike", lambda cut, entries: None)
        return at_once, _told(data, path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_both_ways_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    data = _metadata(30, protocol)
    one, other = _both(data, tmp_path / ".metadata", monkeypatch)
    assert isinstance(one, metadata.Told) and one == other
    assert one.tensors["layers.3.w"].chunks[ROWS].entry is None
    assert one.tensors["layers.3.w"].chunks[1].entry == ("__1_0.distcp", 3000, 900)
    assert one.objects["step"] == ("__0_0.distcp", 0, 10)


def test_a_whole_file_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    root = quick.load(_metadata(30, 4) + bytes(quick.PAD), limits=metadata._LIMITS)
    found = metadata._METADATA.of(root)
    assert found is not None
    entries = columns.entries_alike(found[1])
    assert entries is not None and len(entries) == 30 * ROWS + 1


_FAULTS: dict[str, Any] = {
    "a record twice": lambda state, stored: stored.update(
        {Twice("layers.1.w", torch.Size((0, 0)), 9): _StorageInfo("__0_0.distcp", 5, 9)}
    ),
    "a file outside": lambda state, stored: stored.update(
        {dcp.MetadataIndex("layers.1.w", torch.Size((9, 9)), 9): _StorageInfo("../x", 5, 9)}
    ),
    "a length below zero": lambda state, stored: stored.update(
        {dcp.MetadataIndex("layers.1.w", torch.Size((9, 9)), 9): _StorageInfo("x", 5, -9)}
    ),
    "a compressed record": lambda state, stored: stored.update(
        {dcp.MetadataIndex("y", torch.Size((9, 9)), 9): _StorageInfo("x", 5, 9, ["zstd"])}
    ),
    "a chunk that leaves its tensor": lambda state, stored: state["layers.2.w"].chunks.append(
        dcp.ChunkStorageMetadata(torch.Size((9, 0)), torch.Size((1, 3)))
    ),
    "a chunk without record": lambda state, stored: state["layers.2.w"].chunks.append(
        dcp.ChunkStorageMetadata(torch.Size((0, 1)), torch.Size((1, 1)))
    ),
    "a chunk of other axes": lambda state, stored: state["layers.2.w"].chunks.append(
        dcp.ChunkStorageMetadata(torch.Size((0,)), torch.Size((1,)))
    ),
    "a size that is text": lambda state, stored: setattr(state["layers.2.w"].chunks[0], "sizes", ("a", 1)),
    "a size beyond all": lambda state, stored: setattr(state["layers.2.w"].chunks[0], "sizes", (1 << 70, 1)),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_faults_are_told_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    one, other = _both(_metadata(10, 4, _FAULTS[fault]), tmp_path / ".metadata", monkeypatch)
    assert one == other and not isinstance(one, metadata.Told)


@pytest.mark.filterwarnings("ignore")
def test_damage_is_told_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _metadata(6, 4)
    rng = random.Random(1)
    read = refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        one, other = _both(bytes(data), tmp_path / ".metadata", monkeypatch)
        assert one == other
        read += isinstance(one, metadata.Told)
        refused += not isinstance(one, metadata.Told)
    assert read > 20 and refused > 100
