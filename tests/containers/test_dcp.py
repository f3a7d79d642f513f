"""Distributed checkpoints are located chunk by chunk, exactly as torch wrote them, or refused by name."""

from __future__ import annotations

import itertools
import pickle
import random
import tarfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ckptconv.containers.base import FileTensor
from ckptconv.containers.dcp import dcprecord
from ckptconv.containers.dcp.dcp import open_dcp
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import CkptconvError, FormatError, PlanError
from ckptconv.readers.registry import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

BIG = torch.arange(60, dtype=torch.float32).reshape(5, 12)
STATE = {
    "big": BIG,
    "half": torch.arange(7).bfloat16(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "columns": torch.arange(12.0).reshape(3, 4).t(),
    "part": BIG[1:3, 2:5],
    "nested": {"step": 7, "list": [torch.ones(2), {"deep": torch.zeros(3, dtype=torch.int64)}]},
}


def _values(tensor: FileTensor) -> torch.Tensor:
    data = torch.frombuffer(bytearray(Path(tensor.path).read_bytes()), dtype=torch.uint8)
    typed = data[tensor.offset :][: tensor.storage[1]].clone().view(getattr(torch, tensor.dtype.name))
    return typed.as_strided(tensor.shape, tensor.stride)


def _save(folder: Path, state: dict[str, Any] = STATE) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def test_whole_state(tmp_path: Path) -> None:
    found = open_dcp(_save(tmp_path / "ckpt"))
    assert found.version == "1.0.0"
    assert found.paths["nested.list.1.deep"] == ("nested", "list", 1, "deep")
    assert list(found.objects) == ["nested.step"] and found.read_object("nested.step") == 7
    located = found.locate(found.tensors)
    flat = {**STATE, "nested.list.0": torch.ones(2), "nested.list.1.deep": torch.zeros(3, dtype=torch.int64)}
    del flat["nested"]
    assert set(located) == set(flat)
    for name, (chunk,) in located.items():
        assert found.tensors[name].shape == tuple(flat[name].shape)
        if chunk is not None:
            assert torch.equal(_values(chunk), flat[name]), name
    assert located["empty"] == (None,)


def test_records_alike_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"w{i}": torch.full((4, 8), float(i)) for i in range(20)}
    state["last"] = torch.full((8, 4), 5.0)
    found = open_dcp(_save(tmp_path, state))
    opened: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        opened.append(kwargs["offset"])
        return open_torch(*args, **kwargs)

    monkeypatch.setattr(dcprecord, "open_torch", counted)
    located = found.locate(found.tensors)
    assert len(opened) == 2
    for name, (chunk,) in located.items():
        entry = found.tensors[name].chunks[0].entry
        assert entry is not None and chunk is not None
        path = tmp_path / entry.file
        assert open_torch(path, offset=entry.offset, length=entry.length).root == chunk
        assert torch.equal(_values(chunk), state[name])


def test_a_record_unlike_its_neighbours_is_opened_in_full(tmp_path: Path) -> None:
    """Changed bytes before the data, or in the directory, are seen although the length is the same."""
    state = {f"w{i}": torch.full((4, 8), float(i)) for i in range(4)}
    _save(tmp_path, state)
    file = tmp_path / "__0_0.distcp"
    data = file.read_bytes()
    entries = sorted(
        (c.entry for t in open_dcp(tmp_path).tensors.values() for c in t.chunks if c.entry is not None),
        key=lambda e: e.offset,
    )
    last = entries[-1]
    record = data[last.offset : last.offset + last.length]
    for old, new in (
        (b"FloatStorage", b"FloatStorgae"),  # the pickle
        (b"little", b"bigend"),  # the byte order
        (b"PK\1\2", b"PK\1\3"),  # the directory
    ):
        at = record.index(old)
        file.write_bytes(
            data[: last.offset]
            + record[:at]
            + new
            + record[at + len(old) :]
            + data[last.offset + last.length :]
        )
        with pytest.raises(FormatError, match=f"the record at byte {last.offset:,}"):
            open_dcp(tmp_path).locate(state)


# Metadata made by hand


def _metadata(folder: Path) -> Metadata:
    return pickle.loads((folder / ".metadata").read_bytes())


def _spoil(folder: Path, change: Callable[[Metadata], None]) -> Path:
    meta = _metadata(folder)
    change(meta)
    (folder / ".metadata").write_bytes(pickle.dumps(meta))
    return folder


def _info(meta: Metadata, name: str) -> _StorageInfo:
    return next(info for index, info in meta.storage_data.items() if index.fqn == name)


def _chunks(*boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> Callable[[Metadata], None]:
    """Cut ``big`` into other chunks, each with the record of the whole."""

    def change(meta: Metadata) -> None:
        info = _info(meta, "big")
        meta.state_dict_metadata["big"].chunks = [
            ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes
        ]
        meta.storage_data = {i: v for i, v in meta.storage_data.items() if i.fqn != "big"}
        meta.storage_data |= {MetadataIndex("big", offsets): info for offsets, _ in boxes}

    return change


def _set(name: str, **fields: object) -> Callable[[Metadata], None]:
    def change(meta: Metadata) -> None:
        for key, value in fields.items():
            setattr(_info(meta, name), key, value)

    return change


def _no_record(meta: Metadata) -> None:
    meta.storage_data = {i: v for i, v in meta.storage_data.items() if i.fqn != "half"}


def _other_dtype(meta: Metadata) -> None:
    meta.state_dict_metadata["half"].properties.dtype = torch.float16


def _unknown_dtype(meta: Metadata) -> None:
    meta.state_dict_metadata["half"].properties.dtype = torch.quint8


def _foreign_storage(meta: Metadata) -> None:
    index = next(i for i in meta.storage_data if i.fqn == "half")
    meta.storage_data[index] = {"url": "s3://"}


def _other_shape(meta: Metadata) -> None:
    meta.state_dict_metadata["big"].size = torch.Size((12, 5))
    meta.state_dict_metadata["big"].chunks[0].sizes = torch.Size((12, 5))


def _no_dict(meta: Metadata) -> None:
    meta.storage_data = None


FAULTS: list[tuple[Callable[[Metadata], None], type[CkptconvError], str]] = [
    (_set("half", transform_descriptors=["zstd"]), FormatError, "half.*extension"),
    (_set("half", relative_path="../other/__0_0.distcp"), FormatError, "outside its folder"),
    (_set("half", relative_path="/etc/passwd"), FormatError, "outside its folder"),
    (_set("half", relative_path="a/../../x"), FormatError, "outside its folder"),
    (_set("half", relative_path="a\0b"), FormatError, "outside its folder"),
    (_set("half", relative_path=""), FormatError, "outside its folder"),
    (_set("half", relative_path="__7_0.distcp"), PlanError, r"__7_0\.distcp is missing; half"),
    (_set("half", offset=1 << 40), FormatError, "half: its record is bytes"),
    (_set("half", offset=-4), FormatError, "half.*offset"),
    (_set("half", length=40), FormatError, "half: the record"),
    (_set("half", offset=3), PlanError, "begins inside that of half"),
    (_no_record, PlanError, "half.*in which file"),
    (_other_dtype, PlanError, r"half.*bfloat16\[7\].*float16\[7\]"),
    (_unknown_dtype, FormatError, "half.*quint8"),
    (_foreign_storage, FormatError, "half.*form that is not known"),
    (_other_shape, PlanError, r"big.*\[5, 12\].*\[12, 5\]"),
    (_no_dict, FormatError, "no records"),
    (_chunks(((0, 0), (3, 12))), PlanError, "big: its chunks leave a gap"),
    (_chunks(((0, 0), (3, 12)), ((2, 0), (3, 12))), PlanError, "big: its chunks overlap"),
    (_chunks(((0, 0), (5, 12)), ((1, 0), (1, 1))), PlanError, "big: its chunks overlap"),
    (_chunks(((0, 0), (3, 12)), ((3, 0), (3, 12))), PlanError, "big.*leaves the tensor"),
    (_chunks(((0, 0), (3, 12)), ((3, 0), (2, 12))), PlanError, "record of big .* begins inside that of big"),
]


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_faults(tmp_path: Path, number: int) -> None:
    change, kind, message = FAULTS[number]
    _spoil(_save(tmp_path), change)
    with pytest.raises(kind, match=message) as caught:
        found = open_dcp(tmp_path)
        found.locate(found.tensors)
    assert type(caught.value) is kind and caught.value.where is not None and caught.value.hint is not None


def test_chunks_that_overlap_and_leave_as_large_a_gap(tmp_path: Path) -> None:
    torch.manual_seed(0)
    meta = _cut_by_hand(tmp_path, {"w": (torch.randn(4, 4), [((0, 0), (2, 4)), ((2, 0), (2, 4))])})
    first, second = meta.state_dict_metadata["w"].chunks
    second.offsets = torch.Size((1, 0))
    meta.storage_data = {
        MetadataIndex(i.fqn, (1, 0)) if i.offset == torch.Size((2, 0)) else i: v
        for i, v in meta.storage_data.items()
    }
    meta.state_dict_metadata["w"].chunks = [first, second]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(meta))
    with pytest.raises(PlanError, match=r"w\[4, 4\]: element .* is covered"):
        open_checkpoint(tmp_path)


def test_truncated_file(tmp_path: Path) -> None:
    file = _save(tmp_path) / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-100])
    found = open_dcp(tmp_path)
    with pytest.raises(FormatError, match="the file has"):
        found.locate(found.tensors)


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", pickle.dumps({"a": 1}), pickle.dumps(Path("x"))])
def test_no_metadata_in_it(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(data)
    with pytest.raises(FormatError):
        open_dcp(tmp_path)


def test_metadata_that_would_run_something(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x04cos\nsystem\n(X\x04\x00\x00\x00true\x85R.")
    with pytest.raises(FormatError):
        open_dcp(tmp_path)


def test_every_cut_of_the_metadata_is_refused(tmp_path: Path) -> None:
    data = (_save(tmp_path) / ".metadata").read_bytes()
    for end in random.Random(0).sample(range(len(data)), 60):
        (tmp_path / ".metadata").write_bytes(data[:end])
        with pytest.raises(FormatError):
            open_dcp(tmp_path)


class OwnMetadata(Metadata):
    """As megatron-core 0.15 has one."""


class OwnStorageInfo:
    """As OLMo-core has one."""

    def __init__(self, relative_path: str, offset: int, length: int) -> None:
        self.relative_path, self.offset, self.length = relative_path, offset, length


def test_classes_of_others_are_read_by_their_fields(tmp_path: Path) -> None:
    meta = _metadata(_save(tmp_path))
    meta.storage_data = {
        index: OwnStorageInfo(info.relative_path, info.offset, info.length)  # type: ignore[misc]
        for index, info in meta.storage_data.items()
    }
    own = OwnMetadata(meta.state_dict_metadata, meta.planner_data, meta.storage_data)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(own))
    found = open_dcp(tmp_path)
    (chunk,) = found.locate(["big"])["big"]
    assert chunk is not None and torch.equal(_values(chunk), BIG)
    assert found.read_object("nested.step") == 7


def test_a_tensor_of_an_unknown_type_beside_the_weights(tmp_path: Path) -> None:
    _spoil(_save(tmp_path), _unknown_dtype)
    found = open_dcp(tmp_path)
    assert found.tensors["half"].nbytes > 0
    assert set(found.locate([n for n in found.tensors if n != "half"]))


# Any grid of chunks, as any number of ranks would write it

Box = tuple[tuple[int, ...], tuple[int, ...]]


def _cut_by_hand(folder: Path, tensors: dict[str, tuple[torch.Tensor, list[Box]]]) -> Metadata:
    """Write chunks as records of two files, by torch's own metadata classes."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = Metadata({"step": BytesStorageMetadata()}, {}, {}, None, None)
    meta.planner_data = None
    with (folder / "__0_0.distcp").open("wb") as one, (folder / "__1_0.distcp").open("wb") as two:
        torch.save(3, one)
        meta.storage_data[MetadataIndex("step")] = _StorageInfo("__0_0.distcp", 0, one.tell())
        for name, (whole, boxes) in tensors.items():
            properties = TensorProperties(dtype=whole.dtype)
            chunks = []
            for i, (offsets, sizes) in enumerate(boxes):
                file = (one, two)[i % 2]
                begin = file.tell()
                part = whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
                torch.save(part.clone(), file)
                chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
                index = MetadataIndex(name, offsets, i)
                info = _StorageInfo(f"__{i % 2}_0.distcp", begin, file.tell() - begin)
                meta.storage_data[index] = info
            meta.state_dict_metadata[name] = TensorStorageMetadata(properties, whole.shape, chunks)
    (folder / ".metadata").write_bytes(pickle.dumps(meta))
    return meta


@st.composite
def _grids(draw: st.DrawFn) -> tuple[torch.Tensor, list[Box]]:
    shape = draw(st.lists(st.integers(1, 6), max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=3))}) for n in shape]
    boxes: list[Box] = [((), ())]
    for points in cuts:
        steps = list(itertools.pairwise(points))
        boxes = [((*o, a), (*s, b - a)) for o, s in boxes for a, b in steps]
    return torch.arange(prod(shape)).reshape(shape).to(dtype), draw(st.permutations(boxes))


@given(st.lists(_grids(), min_size=1, max_size=3))
def test_any_grid(
    tmp_path_factory: pytest.TempPathFactory, grids: list[tuple[torch.Tensor, list[Box]]]
) -> None:
    import ckptconv

    folder = tmp_path_factory.mktemp("grid")
    tensors = {f"w{i}": g for i, g in enumerate(grids)}
    _cut_by_hand(folder, tensors)
    model = ckptconv.open(folder)
    assert set(model) == set(tensors)
    for name, (whole, _) in tensors.items():
        read = model.read(name)
        assert read.shape == tuple(whole.shape)
        assert np.array_equal(read.astype(np.float64), whole.double().numpy())


@pytest.mark.parametrize("seed", range(3))
def test_rows_become_one_stored_tensor(tmp_path: Path, seed: int) -> None:
    """Over many ranks there is no pair for each rank."""
    random.seed(seed)
    points = sorted({0, 40, *random.sample(range(40), 12)})
    rows = [((a, 0), (b - a, 3)) for a, b in itertools.pairwise(points)]
    random.shuffle(rows)
    _cut_by_hand(tmp_path, {"w": (torch.randn(40, 3), rows)})
    found = open_checkpoint(tmp_path)
    assert len(found.relation.pairs) == 1 and len(found.stored["w"].extents) == len(rows)


# What frameworks wrote


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(fixtures / "dcp.tar.xz") as tar:
        tar.extractall(folder)
    return folder / "dcp"


def test_optimizer_states_and_objects(archive: Path) -> None:
    folder = archive / "fsdp2_optim_llama_float32_ws2" / "ckpt"
    found = open_dcp(folder)
    located = found.locate(found.tensors)
    truth: dict[str, Any] = {
        n: torch.empty(t.shape, dtype=getattr(torch, t.dtype.name)) for n, t in found.tensors.items()
    }
    dcp.load(truth, checkpoint_id=folder, no_dist=True)
    for name, tensor in found.tensors.items():
        for chunk, record in zip(tensor.chunks, located[name], strict=True):
            box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
            assert record is not None and torch.equal(_values(record), truth[name][box]), name
    group = {n.removeprefix("optimizer.param_groups.0."): found.read_object(n) for n in found.objects}
    assert (group["betas"], group["eps"], group["fused"]) == ((0.9, 0.999), 1e-8, None)
