"""``.bin`` files are what torch.save writes, and torch opens them."""

from __future__ import annotations

import collections
import io
import zipfile
from pathlib import Path
from zlib import crc32

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from isal.isal_zlib import crc32_combine

from ckptconv.containers.base import FileLayout
from ckptconv.containers.torch.torchbin import (
    TensorRef,
    joined,
    layout,
    layout_tree,
    renamed,
    seal,
    seal_piece,
)
from ckptconv.containers.torch.torchfile import open_torch, state_dict_of
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import PlanError

SPEC = tuple[str, str, tuple[int, ...]]
ID = "archive/.data/serialization_id"


def plan(specs: list[SPEC]) -> FileLayout:
    return layout((n, BY_NAME[d], s) for n, d, s in specs)


def made(specs: list[SPEC]) -> dict[str, torch.Tensor]:
    """Make tensors in the way torch.save sees them saved one by one."""
    ones = {n: torch.ones(s).to(torch.uint8).to(getattr(torch, d)) for n, d, s in specs}
    return collections.OrderedDict(ones)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def written(plan: FileLayout, tensors: dict[str, torch.Tensor]) -> bytes:
    data = [raw(tensors[p.name]) for p in plan.tensors]
    out = bytearray(plan.size)
    pieces = [*plan.fixed, *((p.offset, d) for p, d in zip(plan.tensors, data, strict=True))]
    for at, piece in (*pieces, *seal(plan, [crc32(d) for d in data])):
        out[at : at + len(piece)] = piece
    assert len(out) == plan.size
    return bytes(out)


def many(count: int) -> list[SPEC]:
    kinds = sorted(BY_NAME)
    shapes: list[tuple[int, ...]] = [(), (3,), (0,), (2, 3), (0, 5, 1), (1, 2, 1, 3), (300,), (2, 1, 1, 1, 2)]
    return [(f"layer.{i}.é", kinds[i % len(kinds)], shapes[i % len(shapes)]) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 160, 999, 1000, 1001, 2001])
def test_byte_identical_to_torch_save_but_for_the_id(count: int) -> None:
    specs = many(count)
    tensors = made(specs)
    truth = io.BytesIO()
    torch.save(tensors, truth)
    mine = written(plan(specs), tensors)
    assert len(mine) == len(truth.getvalue())
    with zipfile.ZipFile(io.BytesIO(mine)) as a, zipfile.ZipFile(truth) as b:
        assert a.testzip() is None
        for x, y in zip(a.infolist(), b.infolist(), strict=True):
            assert (x.filename, x.header_offset, x.file_size) == (y.filename, y.header_offset, y.file_size)
            if x.filename != ID:
                assert (a.read(x), x.CRC) == (b.read(y), y.CRC)
        at = a.getinfo(ID).header_offset
    assert mine[:at] == truth.getvalue()[:at]


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_opens_it_safely(tmp_path: Path, mmap: bool) -> None:
    specs = many(200)
    tensors = made(specs)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(written(plan(specs), tensors))
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert raw(loaded[name]) == raw(tensor)


def test_our_reader_finds_the_same_places(tmp_path: Path) -> None:
    specs = many(60)
    layout = plan(specs)
    path = tmp_path / "f.bin"
    path.write_bytes(written(layout, made(specs)))
    found, notes = state_dict_of(open_torch(path).root)
    assert not notes
    assert {n: t.offset for n, t in found.items()} == {p.name: p.offset for p in layout.tensors}
    assert all(p.offset % 64 == 0 for p in layout.tensors)


def test_the_id_follows_the_content() -> None:
    layout = plan([("a", "float32", (4,))])
    assert seal(layout, [1]) != seal(layout, [2])
    with pytest.raises(ValueError, match="zip"):
        seal(layout, [])


def test_a_piece_is_sealed_as_the_whole_file_is() -> None:
    """Once the sum of the tensor before it is known, but for a directory that says several sums."""
    single = [layout_tree(TensorRef(f"t{n}", BY_NAME["int8"], (n,))) for n in (5, 0, (1 << 32) + 64)]
    for file in (plan(many(7)), joined([*single, plan(many(3)), *single])):
        sums = [7 * i for i in range(1, len(file.tensors) + 1)]
        whole, left = dict(file.fixed) | dict(seal(file, sums)), []
        for number, (at, _) in enumerate(file.fixed):
            before = [i for i, t in enumerate(file.tensors) if t.offset <= at]
            if before and (piece := seal_piece(file, number, before[-1], sums[before[-1]])) is not None:
                assert piece == whole[at]
            elif before:
                left.append(number)
        assert len(left) == 1, "the directory of the only archive of several tensors"


def test_names_are_given_once() -> None:
    with pytest.raises(PlanError, match="twice"):
        plan([("a", "int8", ()), ("a", "int8", ())])


def test_files_beyond_4_gib(tmp_path: Path) -> None:
    specs: list[SPEC] = [
        ("first", "float32", (3,)),
        ("big", "uint8", ((1 << 32) + 640,)),
        ("after", "float32", (5,)),
        ("nothing", "int64", (0,)),
    ]
    layout = plan(specs)
    path = tmp_path / "f.bin"
    small = {n: raw(torch.full(s, 7.0)) for n, d, s in specs if d == "float32"}
    crcs = [crc32(small.get(p.name, b"")) for p in layout.tensors]
    with path.open("wb") as file:
        file.truncate(layout.size)
        pieces = [*layout.fixed, *((p.offset, small[p.name]) for p in layout.tensors if p.name in small)]
        for at, piece in (*pieces, *seal(layout, crcs)):
            file.seek(at)
            file.write(piece)
    assert path.stat().st_size == layout.size
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/1").file_size == (1 << 32) + 640
        assert archive.read("archive/data/2") == small["after"]
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["after"].tolist() == [7.0] * 5
    assert loaded["big"].shape == ((1 << 32) + 640,)
    assert loaded["nothing"].shape == (0,)
    found, _ = state_dict_of(open_torch(path).root)
    assert {n: t.offset for n, t in found.items()} == {p.name: p.offset for p in layout.tensors}


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_sums_combine(a: bytes, b: bytes) -> None:
    assert crc32_combine(crc32(a), crc32(b), len(b)) == crc32(a + b)


def test_sums_of_many_blocks_combine() -> None:
    block = bytes(range(256)) * 16
    total = 0
    for _ in range(50):
        total = crc32_combine(total, crc32(block), len(block))
    assert total == crc32(block * 50)


@pytest.mark.parametrize("count", [0, 1, 3, 300])
def test_ranks_that_hold_tensors_alike_have_one_layout_but_for_whose_they_are(count: int) -> None:
    def of(rank: str) -> FileLayout:
        held = {f"w{i}": TensorRef(f"{rank}:w{i}", BY_NAME["float32"], (i % 3, 2)) for i in range(count)}
        return layout_tree({"model": held, "iteration": 3})

    assert renamed(of("mp_rank_00"), {f"mp_rank_00:w{i}": f"rank 1:w{i}" for i in range(count)}) == of(
        "rank 1"
    )
