"""MindSpore's files are read by position and written byte for byte as MindSpore writes them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckptconv.containers import safetensors
from ckptconv.containers.base import FileLayout
from ckptconv.containers.mindspore.mindspore import check_crc, is_mindspore, open_mindspore
from ckptconv.containers.mindspore.mindspore_out import MindSporeLayout, layout, seal
from ckptconv.containers.stored import Stored
from ckptconv.dtypes import BY_NAME, numpy_dtype
from ckptconv.errors import CkptconvError, FormatError, PlanError
from ckptconv.places.window import Window

F32 = BY_NAME["float32"]


@pytest.fixture(scope="session")
def cases(fixtures: Path) -> Path:
    return fixtures / "mindspore"


def _bytes(stored: Stored) -> bytes:
    out = []
    for path, offset, size in stored.spans(0, stored.numel):
        with open(path, "rb") as file:
            file.seek(offset)
            out.append(file.read(size))
    return b"".join(out)


def _raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def record(tag: str, kind: str, dims: list[int], data: bytes) -> bytes:
    tensor = b"".join(b"\x08" + _varint(n & (1 << 64) - 1) for n in dims)
    tensor += _field(2, kind.encode()) + _field(3, data)
    return _field(1, _field(1, tag.encode()) + _field(2, tensor))


# Files MindSpore 2.9 wrote


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("raw_dtypes/model.ckpt", "raw_dtypes"),
        ("raw_crc/model.ckpt", "raw_dtypes"),
        ("raw_safetensors/model.safetensors", "raw_dtypes"),
        ("raw_append/model.ckpt", "raw_append"),
        ("raw_split_bytes/model.ckpt", "raw_split_bytes"),
        ("raw_adam_cell/model.ckpt", "raw_adam_cell"),
    ],
)
def test_every_tensor_is_found(cases: Path, case: str, expected: str) -> None:
    found = open_mindspore(cases / case).tensors
    want = load_file(cases / expected / "expected.safetensors")
    assert set(found) == set(want)
    for name, tensor in want.items():
        stored = found[name]
        assert (stored.shape, f"torch.{stored.dtype}") == (tuple(tensor.shape), str(tensor.dtype)), name
        assert _bytes(stored) == _raw(tensor), name


def test_texts(cases: Path) -> None:
    found = open_mindspore(cases / "raw_append/model.ckpt")
    assert found.strings == {"version": "mf-1.9 版本", "empty": ""}
    assert found.tensors["lr"].shape == () and found.tensors["flag"].dtype.name == "bool"


def test_a_tensor_over_several_records_is_one(cases: Path) -> None:
    found = open_mindspore(cases / "raw_split_bytes/model.ckpt").tensors["big.fp32"]
    assert found.shape == (37, 129) and [e.start for e in found.extents] == [0, 1024, 2048, 3072, 4096]


def test_records_cut_by_rows(tmp_path: Path) -> None:
    # The asynchronous save cuts with numpy.array_split along axis 0: unevenly, with empty pieces at the end.
    data = np.arange(6, dtype=np.float32).reshape(3, 2)
    pieces = [p.tobytes() for p in np.array_split(data, 5)]
    (tmp_path / "a.ckpt").write_bytes(b"".join(record("w", "Float32", [3, 2], p) for p in pieces))
    found = open_mindspore(tmp_path / "a.ckpt").tensors["w"]
    assert len(found.extents) == 3 and _bytes(found) == data.tobytes()


def test_shapes_at_the_edge(tmp_path: Path) -> None:
    records = [
        record("scalar", "Int32", [0], b"\7\0\0\0"),
        record("empty", "Float32", [0, 5], b""),
        record("none", "Float32", [0], b""),
    ]
    (tmp_path / "a.ckpt").write_bytes(b"".join(records))
    found = open_mindspore(tmp_path / "a.ckpt").tensors
    assert {n: s.shape for n, s in found.items()} == {"scalar": (), "empty": (0, 5), "none": (0,)}


def test_packed_dims(tmp_path: Path) -> None:
    tensor = _field(1, b"\2\3") + _field(2, b"UInt8") + _field(3, b"abcdef")
    (tmp_path / "a.ckpt").write_bytes(_field(1, _field(1, b"w") + _field(2, tensor)))
    assert open_mindspore(tmp_path / "a.ckpt").tensors["w"].shape == (2, 3)


# Refused


@pytest.mark.parametrize(
    ("magic", "scheme"), [(0x7F3A5ED8, "AES-GCM"), (0x7F3A5ED9, "AES-CBC"), (0x7F3A5EDA, "SM4-CBC")]
)
def test_encrypted_files_are_refused_by_scheme(tmp_path: Path, magic: int, scheme: str) -> None:
    (tmp_path / "a.ckpt").write_bytes(magic.to_bytes(4, "little") + bytes(60))
    assert is_mindspore(tmp_path / "a.ckpt")
    with pytest.raises(FormatError, match=scheme):
        open_mindspore(tmp_path / "a.ckpt")


def test_a_really_encrypted_file(cases: Path) -> None:
    with pytest.raises(FormatError, match="AES-GCM"):
        open_mindspore(cases / "raw_enc_aes_gcm/model.ckpt")


def test_a_file_cut_off_anywhere_inside_a_record(cases: Path, tmp_path: Path) -> None:
    data = (cases / "raw_append/model.ckpt").read_bytes()
    ends, names = {0}, []
    at = 0
    while at < len(data):  # every record of this file is longer than 127 bytes or shorter, never over 16 KiB
        length, skip = (
            (data[at + 1], 2) if data[at + 1] < 128 else (data[at + 1] & 127 | data[at + 2] << 7, 3)
        )
        at += skip + length
        ends.add(at)
    for size in range(len(data)):
        (tmp_path / "a.ckpt").write_bytes(data[:size])
        if size in ends - {0}:
            names.append(len(open_mindspore(tmp_path / "a.ckpt").tensors))
        else:
            with pytest.raises(FormatError):
                open_mindspore(tmp_path / "a.ckpt")
    assert names == sorted(names) and len(ends) == 10


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (record("w", "Float32", [2, 3], bytes(20)), "20 bytes for float32"),
        (record("w", "Float32", [2, 3], bytes(28)), "28 bytes for float32"),
        (record("w", "Float32", [1 << 40, 1 << 40], bytes(4)), "4 bytes for float32"),
        (record("w", "Float32", [-1, 3], bytes(12)), "a shape that is none"),
        (record("w", "Int4", [8], bytes(4)), "4-bit"),
        (record("w", "Float8", [8], bytes(8)), "unknown type 'Float8'"),
        (record("w", "Float32", [3], bytes(6)) + record("w", "Float32", [3], bytes(6)), "inside an element"),
        (record("w", "Float32", [1], bytes(4)) * 2, "8 bytes for float32"),
        (
            record("w", "Int8", [1], b"a") + record("v", "Int8", [1], b"b") + record("w", "Int8", [1], b"c"),
            "two tensors are named 'w'",
        ),
        (record("w", "Int8", [2], b"a") + record("w", "UInt8", [2], b"b"), "differ in type"),
        (_field(1, _field(1, b"table") + _field(3, b"")), "MapParameter"),
        (_field(1, _field(1, b"w")), "no tensor"),
        (_field(1, _field(2, _field(2, b"Int8") + _field(3, b""))), "no name"),
        (_field(1, _field(1, b"w") + _field(2, _field(3, b"a"))), "no type"),
        (_field(1, _field(1, b"w") + _field(2, _field(2, b"Int8"))), "no content"),
        (_field(1, _field(1, b"\xff") + _field(2, b"")), "UTF-8"),
        (_field(2, b"abc"), "not a MindSpore checkpoint"),
        (b"PK\3\4 a zip file", "not a MindSpore checkpoint"),
        (b"", "no tensors"),
    ],
)
def test_what_is_no_sound_checkpoint(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(FormatError, match=match):
        open_mindspore(tmp_path / "a.ckpt")


def test_packed_int4_of_safetensors(tmp_path: Path) -> None:
    save_file(
        {"w": torch.zeros(4, dtype=torch.int8)}, tmp_path / "a.safetensors", {"format": "ms", "w": "Int4"}
    )
    with pytest.raises(FormatError, match="4-bit"):
        open_mindspore(tmp_path / "a.safetensors")


@given(st.binary(max_size=200))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.ckpt"
    path.write_bytes(data)
    is_mindspore(path)
    with suppress(CkptconvError):
        open_mindspore(path)


@given(st.data())
def test_flipped_bytes(cases: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(["raw_crc", "raw_append", "raw_adam_cell"]))
    raw = bytearray((cases / source / "model.ckpt").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.ckpt"
    path.write_bytes(raw)
    try:
        found = open_mindspore(path)
    except CkptconvError:
        return
    assert all(len(_bytes(s)) == s.nbytes for s in found.tensors.values())  # never beyond the file


# CRC-32


@pytest.mark.parametrize("case", ["raw_dtypes", "raw_append"])
def test_without_a_sum(cases: Path, case: str) -> None:
    assert open_mindspore(cases / case / "model.ckpt").crc is None
    assert not check_crc(cases / case / "model.ckpt")


def test_the_sum(cases: Path, tmp_path: Path) -> None:
    assert check_crc(cases / "raw_crc/model.ckpt")
    raw = bytearray((cases / "raw_crc/model.ckpt").read_bytes())
    raw[200] ^= 1
    (tmp_path / "a.ckpt").write_bytes(raw)
    assert open_mindspore(tmp_path / "a.ckpt").tensors  # a flipped bit of the data shows only in the sum
    with pytest.raises(FormatError, match="CRC-32"):
        check_crc(tmp_path / "a.ckpt")


def test_the_sum_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(5.0),
        "a": torch.ones(2, 2),
        "step": torch.tensor(9),
        "loss": torch.tensor(0.5),
    }
    crc = 0
    for name in sorted(tensors):  # as _exec_save of MindSpore 2.9 does
        crc = crc32(bytes(name, "utf-8"), crc)
        crc = crc32(bytes(tensors[name].numpy()), crc)
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"format": "ms", "crc_num": str(crc)})
    assert is_mindspore(path) and check_crc(path)
    save_file({**tensors, "b": torch.arange(5.0) + 1}, path, {"format": "ms", "crc_num": str(crc)})
    with pytest.raises(FormatError, match="CRC-32"):
        check_crc(path)


# Recognised


def test_other_files_are_not_taken(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.ckpt")
    torch.save({"w": torch.zeros(2)}, tmp_path / "b.ckpt", _use_new_zipfile_serialization=False)
    save_file({"w": torch.zeros(2)}, tmp_path / "c.safetensors", {"format": "pt"})
    (tmp_path / "d.ckpt").write_bytes(b"\n")
    (tmp_path / "e.ckpt").write_bytes(b"")
    (tmp_path / "f.safetensors").write_bytes(b"junk")
    assert not any(is_mindspore(p) for p in tmp_path.iterdir())


def test_its_own_files_are(cases: Path) -> None:
    assert all(is_mindspore(p) for p in cases.glob("raw_*/model.*"))


# Written


def _write(file: FileLayout, data: Mapping[str, bytes], path: Path) -> None:
    out = bytearray(file.size)
    for at, fixed in file.fixed:
        out[at : at + len(fixed)] = fixed
    for t in file.tensors:
        assert len(data[t.name]) == t.nbytes
        out[t.offset : t.offset + t.nbytes] = data[t.name]
    if file.needs_crc:
        for at, fixed in seal(file, [crc32(data[t.name]) for t in file.tensors]):
            out[at : at + len(fixed)] = fixed
    path.write_bytes(out)


def _parts(laid: MindSporeLayout, tensors: Mapping[str, bytes], item: Mapping[str, int]) -> dict[str, bytes]:
    data = dict(tensors)
    for name, parts in laid.parts.items():
        for p in parts:
            start = p.start * item[name]
            data[p.placed] = tensors[name][start : start + p.numel * item[name]]
    return data


@pytest.mark.parametrize(
    ("case", "crc", "size"),
    [("raw_dtypes", False, 512 << 20), ("raw_crc", True, 512 << 20), ("raw_split_bytes", False, 4096)],
)
def test_a_file_is_that_of_mindspore(cases: Path, tmp_path: Path, case: str, crc: bool, size: int) -> None:
    source = cases / case / "model.ckpt"
    tensors = open_mindspore(source).tensors
    laid = layout([(n, s.dtype, s.shape) for n, s in tensors.items()], crc=crc, record=size)
    raw = {n: _bytes(s) for n, s in tensors.items()}
    _write(
        laid.file, _parts(laid, raw, {n: s.dtype.itemsize for n, s in tensors.items()}), tmp_path / "a.ckpt"
    )
    assert (tmp_path / "a.ckpt").read_bytes() == source.read_bytes()


def test_a_safetensors_file_is_that_of_mindspore(cases: Path, tmp_path: Path) -> None:
    source = cases / "raw_safetensors/model.safetensors"
    tensors = open_mindspore(source).tensors
    file = safetensors.layout([(n, s.dtype, s.shape) for n, s in tensors.items()], {"format": "ms"})
    _write(file, {n: _bytes(s) for n, s in tensors.items()}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == source.read_bytes()


def test_a_large_tensor_is_split_as_mindspore_does() -> None:
    # fp32 of 593 MiB: MindSpore 2.9 writes records of 536,870,912 and 85,458,944 bytes.
    laid = layout([("w", F32, (155582464,)), ("v", F32, (2,))])
    assert [(t.name, t.nbytes) for t in laid.file.tensors] == [
        ("w[0:134217728]", 536870912),
        ("w[134217728:155582464]", 85458944),
        ("v", 8),
    ]
    assert [(p.start, p.numel) for p in laid.parts["w"]] == [(0, 134217728), (134217728, 21364736)]


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ([("w", F32, (2,)), ("w", F32, (2,))], "twice"),
        ([("w", F32, (0, 2))], "empty"),
        ([("w", BY_NAME["complex64"], (2,))], "type"),
        ([("w", F32, (4,)), ("w[0:2]", F32, (2,))], "twice"),
    ],
)
def test_what_mindspore_cannot_hold(tensors: list[tuple[str, object, tuple[int, ...]]], match: str) -> None:
    with pytest.raises(PlanError, match=match):
        layout(tensors, record=8)  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=20).filter(lambda s: s.isprintable()),
            st.sampled_from(["float32", "bfloat16", "bool", "int64", "float64", "uint16"]),
            st.lists(st.integers(1, 9), max_size=3),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda t: t[0],
    ),
    st.booleans(),
    st.sampled_from([8, 24, 64, 1 << 20]),
    st.integers(0, 1 << 30),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    specs: list[tuple[str, str, list[int]]],
    crc: bool,
    size: int,
    seed: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.ckpt"
    rng = random.Random(seed)
    tensors = [(n, BY_NAME[d], tuple(shape)) for n, d, shape in specs]
    laid = layout(tensors, crc=crc, record=size)
    raw = {n: rng.randbytes(d.itemsize * int(np.prod(shape, dtype=int))) for n, d, shape in tensors}
    _write(laid.file, _parts(laid, raw, {n: d.itemsize for n, d, _ in tensors}), path)
    found = open_mindspore(path)
    assert {n: (s.dtype, s.shape, _bytes(s)) for n, s in found.tensors.items()} == {
        n: (d, shape, raw[n]) for n, d, shape in tensors
    }
    assert check_crc(path) is crc


def test_numbers_of_every_type(cases: Path) -> None:
    found = open_mindspore(cases / "raw_dtypes/model.ckpt").tensors
    want = load_file(cases / "raw_dtypes/expected.safetensors")
    value = np.frombuffer(_bytes(found["p.bf16"]), numpy_dtype(found["p.bf16"].dtype)).astype(np.float32)
    assert np.array_equal(value.reshape(3, 5), want["p.bf16"].float().numpy())


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid = layout([(f"w.{i}", F32, (1 << 28,)) for i in range(4)])
    with open(tmp_path / "a.ckpt", "wb") as file:  # 4 GB, nearly all of it a hole
        for at, fixed in laid.file.fixed:
            file.seek(at)
            file.write(fixed)
        file.truncate(laid.file.size)
    lengths: list[int] = []
    read = Window.read

    def counted(window: Window, length: int) -> bytes:
        lengths.append(length)
        return read(window, length)

    monkeypatch.setattr(Window, "read", counted)
    found = open_mindspore(tmp_path / "a.ckpt").tensors
    assert [len(s.extents) for s in found.values()] == [2] * 4
    assert sum(lengths) < 100_000
