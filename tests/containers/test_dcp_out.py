"""Lay out DCP folders: torch reads what the layouts say, and every record is a sound archive."""

from __future__ import annotations

import io
import zipfile
import zlib
from math import prod
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader

from ckptconv.containers.dcp.dcp import open_dcp
from ckptconv.containers.dcp.dcp_out import DcpLayout, OutChunk, OutObject, cut, layout
from ckptconv.containers.torch import torchbin
from ckptconv.containers.torch.torchbin import TensorRef
from ckptconv.dtypes import dtype
from ckptconv.errors import PlanError

pytestmark = pytest.mark.filterwarnings("ignore")
TENSORS = {
    "stack": torch.arange(60.0).reshape(3, 4, 5),
    "half": torch.randn(700).bfloat16(),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
}


def chunks(limit: int) -> list[OutChunk]:
    found = []
    for name, t in TENSORS.items():
        kind = dtype(str(t.dtype).removeprefix("torch."))
        for at, sizes in cut(t.shape, t.element_size(), limit, stacked=int(name == "stack")):
            found.append(OutChunk(f"{name}@{at}", name, kind, tuple(t.shape), at, sizes))
    return found


def box(chunk: OutChunk) -> bytes:
    part = TENSORS[chunk.tensor][
        tuple(slice(a, a + n) for a, n in zip(chunk.offsets, chunk.sizes, strict=True))
    ]
    return part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write(made: DcpLayout, parts: list[OutChunk], folder: Path) -> None:
    """Write the files as an engine does: fixed bytes, data, then the sums."""
    by_key = {c.key: c for c in parts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".metadata").write_bytes(made.metadata)
    for name, laid in made.files.items():
        content, sums = bytearray(laid.size), []
        for at, piece in laid.fixed:
            content[at : at + len(piece)] = piece
        for tensor in laid.tensors:
            data = box(by_key[tensor.name])
            assert tensor.offset % 64 == 0  # so that no element lies across the border of two tiles
            content[tensor.offset : tensor.offset + len(data)] = data
            sums.append(zlib.crc32(data))
        for at, piece in torchbin.seal(laid, sums):
            content[at : at + len(piece)] = piece
        assert len(content) == laid.size
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("limit", [1, 6000, 1 << 20])
def test_torch_reads_it(tmp_path: Path, limit: int) -> None:
    parts = chunks(limit)
    made = layout(parts, [OutObject(("step", "again"), [7, "x"])], limit=limit)
    assert (len(made.files) > 1) == (limit < 1 << 20)
    write(made, parts, tmp_path)
    state = {name: torch.empty_like(t) for name, t in TENSORS.items()} | {"step": None, "again": None}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    for name, t in TENSORS.items():
        assert torch.equal(state[name], t), name
    assert state["step"] == state["again"] == [7, "x"]


def test_our_reader_agrees(tmp_path: Path) -> None:
    parts = chunks(6000)
    write(layout(parts, [OutObject(("step",), 7)], limit=6000), parts, tmp_path)
    found = open_dcp(tmp_path)
    assert {n: t.shape for n, t in found.tensors.items()} == {n: tuple(t.shape) for n, t in TENSORS.items()}
    assert found.read_object("step") == 7 and found.paths["stack"] == ("stack",)
    for name, located in found.locate(found.tensors).items():
        for chunk, tensor in zip(found.tensors[name].chunks, located, strict=True):
            assert (tensor is None) == (0 in chunk.sizes)
            if chunk.entry is not None:
                record = (tmp_path / chunk.entry.file).read_bytes()[chunk.entry.offset :][
                    : chunk.entry.length
                ]
                assert zipfile.ZipFile(io.BytesIO(record)).testzip() is None


def test_fields_of_the_metadata(tmp_path: Path) -> None:
    parts = chunks(1 << 20)
    write(layout(parts, limit=1 << 20), parts, tmp_path / "ours")
    dcp.save(dict(TENSORS), checkpoint_id=tmp_path / "theirs", no_dist=True)
    ours, theirs = (FileSystemReader(tmp_path / d).read_metadata() for d in ("ours", "theirs"))
    assert vars(ours).keys() == vars(theirs).keys() and ours.version == theirs.version
    assert ours.planner_data == theirs.planner_data
    for name, one in theirs.state_dict_metadata.items():
        assert ours.state_dict_metadata[name].properties == one.properties
        assert ours.state_dict_metadata[name].size == one.size
    assert ours.state_dict_metadata["half"] == theirs.state_dict_metadata["half"]
    assert set(ours.storage_data) >= {k for k in theirs.storage_data if k.fqn != "stack"}


@given(
    st.lists(st.integers(0, 7), min_size=0, max_size=4),
    st.integers(0, 2),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 5000),
)
def test_boxes_tile_the_tensor(shape: list[int], stacked: int, itemsize: int, limit: int) -> None:
    boxes = list(cut(shape, itemsize, limit, stacked=min(stacked, len(shape))))
    seen = torch.zeros(shape)
    for at, sizes in boxes:
        assert len(at) == len(sizes) == len(shape)
        seen[tuple(slice(a, a + n) for a, n in zip(at, sizes, strict=True))] += 1
        rows = sizes[min(stacked, len(shape)) :]
        row = prod(rows[1:]) * itemsize
        assert prod(sizes) * itemsize <= max(limit, row) or not rows
    assert torch.all(seen == 1) and boxes


def test_names_given_twice() -> None:
    part = OutChunk("a", "a", dtype("float32"), (2,), (0,), (2,))
    with pytest.raises(PlanError, match="twice"):
        layout([part, part], limit=1000)
    with pytest.raises(PlanError, match="twice"):
        layout([part], [OutObject(("a",), 1)], limit=1000)


def test_objects_hold_no_data() -> None:
    with pytest.raises(PlanError, match="without their data"):
        layout([], [OutObject(("a",), [TensorRef("t", dtype("float32"), (2,))])], limit=1000)
