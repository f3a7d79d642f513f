"""safetensors headers are read strictly and written byte for byte as the library does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptconv.containers.safetensors import layout, read_header
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import FormatError, PlanError

WRITABLE = sorted(n for n, d in BY_NAME.items() if d.safetensors)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
dicts = st.dictionaries(names, st.tuples(st.sampled_from(WRITABLE), shapes), max_size=12)


def made(spec: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    return {
        name: torch.ones(shape).to(torch.uint8).to(getattr(torch, dtype))
        for name, (dtype, shape) in spec.items()
    }


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=dicts)
def test_written_byte_for_byte_as_the_library_does_and_read_back(
    spec: dict[str, tuple[str, tuple[int, ...]]], tmp_path: Path
) -> None:
    tensors = made(spec)
    want = safetensors.torch.save(tensors, {"format": "pt"})
    plan = layout((n, BY_NAME[d], s) for n, (d, s) in spec.items())
    assert plan.size == len(want)
    assert not plan.needs_crc
    written = bytearray(plan.size)
    for at, piece in plan.fixed:
        written[at : at + len(piece)] = piece
    for placed in plan.tensors:
        data = tensors[placed.name].flatten()
        raw = data.view(torch.uint8).numpy().tobytes() if data.numel() else b""
        written[placed.offset : placed.offset + placed.nbytes] = raw
    assert bytes(written) == want

    path = tmp_path / "f.safetensors"
    path.write_bytes(want)
    found, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    assert {n: (t.dtype.name, t.shape) for n, t in found.items()} == {
        n: (d, tuple(s)) for n, (d, s) in spec.items()
    }
    assert {n: t.offset for n, t in found.items()} == {p.name: p.offset for p in plan.tensors}


def test_without_metadata_there_is_none(tmp_path: Path) -> None:
    plan = layout([("a", BY_NAME["float32"], (2,))], metadata={})
    assert plan.fixed[0][1] + bytes(8) == safetensors.torch.save({"a": torch.zeros(2)})


def test_what_cannot_be_written_is_refused_in_the_plan() -> None:
    with pytest.raises(PlanError, match="complex128"):
        layout([("a", BY_NAME["complex128"], (2,))])
    with pytest.raises(PlanError, match="twice"):
        layout([("a", BY_NAME["int8"], (2,))] * 2)


def entry(dtype: object = "F32", shape: object = (2,), span: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


def write(path: Path, header: object, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": entry()}, bytes(7), "has"),
        ({"a": entry()}, bytes(9), "has"),
        ({"a": entry(span=(1, 9))}, bytes(9), "gap"),
        ({"a": entry(), "b": entry(span=(4, 12))}, bytes(12), "overlaps"),
        ({"a": entry(), "b": entry()}, bytes(8), "overlaps"),
        ({"a": entry(span=(8, 0))}, bytes(8), "bytes for"),
        ({"a": entry(shape=(3,))}, bytes(8), "bytes for"),
        ({"a": entry(shape=(-2,))}, bytes(8), "none"),
        ({"a": entry(shape=(2.0,))}, bytes(8), "none"),
        ({"a": entry(shape=(True, 2))}, bytes(8), "none"),
        ({"a": entry(shape="2")}, bytes(8), "none"),
        ({"a": entry(span=(0, 8, 8))}, bytes(8), "none"),
        ({"a": entry(dtype="F4")}, bytes(8), "F4"),
        ({"a": entry(dtype="F6_E2M3")}, bytes(8), "F6_E2M3"),
        ({"a": entry(dtype=["F32"])}, bytes(8), "dtype"),
        ({"a": {**entry(), "x": 1}}, bytes(8), "exactly"),
        ({"a": 1}, b"", "exactly"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        ({"__metadata__": [1]}, b"", "metadata"),
        ([1], b"", "object"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', bytes(8), "twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8), "twice"),
        (b"{", b"", "JSON"),
        (b"\xff\xfe", b"", "JSON"),
        (b"[" * 1_000_000, b"", "JSON"),
        (b'{"a":' + b"9" * 100_000 + b"}", b"", "JSON|exactly"),
    ],
)
def test_damaged_headers_are_refused_by_name(tmp_path: Path, header: object, data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_header(write(tmp_path / "f.safetensors", header, data))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = safetensors.torch.save({"a": torch.ones(3), "b": torch.ones(2, 2)}, {"format": "pt"})
    path = tmp_path / "f.safetensors"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            read_header(path)
    path.write_bytes((1 << 63).to_bytes(8, "little") + whole[8:])
    with pytest.raises(FormatError):
        read_header(path)
