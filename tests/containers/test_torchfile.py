"""Files of torch.save are located exactly, and damaged or hostile ones refused."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.inert import Global, Record
from ckptconv.containers.torch.rankfile import read_rank
from ckptconv.containers.torch.torchfile import FileStorage, open_torch, state_dict_of
from ckptconv.containers.torch.torchtensors import odd_tensor
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import FormatError
from npu import Format, save_as_npu, save_with_marks

CONTAINERS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: object, path: Path, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def read(tensor: FileTensor) -> torch.Tensor:
    """Read a located tensor with nothing but its description."""
    begin, length = tensor.storage
    with open(tensor.path, "rb") as file:
        file.seek(begin)
        raw = file.read(length)
    assert len(raw) == length
    if not tensor.numel:
        return torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype.name))
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    item = tensor.dtype.itemsize
    flat = flat[: len(flat) // item * item].view(getattr(torch, tensor.dtype.name))
    return flat.as_strided(tensor.shape, tensor.stride, (tensor.offset - begin) // item)


def same(found: object, truth: torch.Tensor) -> bool:
    assert isinstance(found, FileTensor)
    mine = read(found)
    assert (mine.dtype, mine.shape) == (truth.dtype, truth.shape)
    assert found.stride == truth.stride()
    return mine.contiguous().view(-1).view(torch.uint8).equal(truth.contiguous().view(-1).view(torch.uint8))


def every_dtype() -> dict[str, torch.Tensor]:
    raw = torch.randint(0, 2, (96,), dtype=torch.uint8)
    return {name: raw.clone().view(getattr(torch, name)) for name in BY_NAME}


@CONTAINERS
def test_every_dtype_and_view_is_located(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(60, dtype=torch.float32)
    saved = {
        **every_dtype(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "slice": base[7:19].view(3, 4),
        "transposed": base.view(6, 10).t(),
        "strided": base[3::5],
        "expanded": base[:1].expand(5),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "buffer": torch.nn.Buffer(torch.ones(2)),
    }
    attributed = torch.ones(4)
    attributed.tag = "x"
    saved["attributed"] = attributed
    file = open_torch(save(saved, tmp_path / "f.pt", zipped))
    assert file.container == ("zip" if zipped else "legacy")
    assert file.tensors == len(saved)
    assert isinstance(file.root, dict)
    for name, tensor in saved.items():
        assert same(file.root[name], tensor.detach()), name
    views = [file.root[n] for n in ("slice", "transposed", "strided", "expanded")]
    assert len({v.storage for v in views}) == 1
    assert [t.is_contiguous for t in views] == [True, False, False, False]


@CONTAINERS
def test_structure_and_other_values_survive(tmp_path: Path, zipped: bool) -> None:
    saved = {
        "list": [torch.ones(2), (1, "a", None)],
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "ordered": collections.OrderedDict(z=1, a=torch.zeros(1)),
        "storage": torch.ones(4, dtype=torch.int16).untyped_storage(),
        "device": torch.device("cpu"),
    }
    root = open_torch(save(saved, tmp_path / "f.pt", zipped)).root
    assert isinstance(root, dict)
    assert same(root["list"][0], torch.ones(2))
    assert root["list"][1] == (1, "a", None)
    assert root["size"] == (2, 3)
    assert root["dtype"] == Global("torch", "bfloat16")
    assert list(root["ordered"]) == ["z", "a"]
    assert isinstance(root["storage"], FileStorage)
    assert root["storage"].nbytes == 8
    assert root["device"].cls == "torch.device"


def test_a_container_inside_a_file_is_found(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.arange(9), buffer)
    path = tmp_path / "many.distcp"
    path.write_bytes(b"x" * 100 + buffer.getvalue() + b"y" * 50)
    file = open_torch(path, offset=100, length=len(buffer.getvalue()))
    assert same(file.root, torch.arange(9))
    with pytest.raises(FormatError):
        open_torch(path, offset=100, length=10**6)


def test_tensors_that_are_not_plain_stay_records(tmp_path: Path) -> None:
    saved = {
        "meta": torch.empty(3, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
    }
    root = open_torch(save(saved, tmp_path / "f.pt")).root
    assert isinstance(root, dict)
    assert {type(v) for v in root.values()} == {Record}
    with pytest.raises(FormatError, match="meta"):
        state_dict_of(root)


@pytest.mark.filterwarnings("ignore")
@CONTAINERS
def test_quantized_and_conjugated_tensors_are_never_taken_for_plain(tmp_path: Path, zipped: bool) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    conjugated = torch.ones(3, dtype=torch.complex64).conj()
    for tensor, why in (
        (quantized, "quantised"),
        (conjugated, "conjugated"),
        (conjugated.imag, "negated"),
    ):
        root = open_torch(save({"w": tensor}, tmp_path / "f.pt", zipped)).root
        with pytest.raises(FormatError, match=f"'w' is not a plain one: .*{why}"):
            state_dict_of(root)


@pytest.mark.filterwarnings("ignore")
@CONTAINERS
def test_odd_tensors_beside_the_weights_do_not_refuse_them(tmp_path: Path, zipped: bool) -> None:
    odd = {
        "quantized": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
        "conj": torch.ones(3, dtype=torch.complex64).conj(),
        "sparse": torch.eye(3).to_sparse(),
        "parameter": torch.nn.Parameter(torch.ones(3, dtype=torch.complex64).conj()),
    }
    if zipped and hasattr(torch, "float4_e2m1fn_x2"):
        odd["float4"] = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    weight = torch.arange(6.0).reshape(2, 3)
    file = open_torch(save({"model": {"w": weight}, "optimizer": odd}, tmp_path / "f.pt", zipped))
    tensors, _ = state_dict_of(file.root)
    assert list(tensors) == ["w"] and same(tensors["w"], weight)
    for name, value in file.root["optimizer"].items():  # type: ignore[index]
        assert odd_tensor(value) is not None, name


@pytest.mark.filterwarnings("ignore")
@CONTAINERS
@pytest.mark.parametrize("mark", [True, 29, Format(2)], ids=["bool", "int", "enum"])
def test_tensors_of_an_npu_are_located(tmp_path: Path, zipped: bool, mark: object) -> None:
    base = torch.arange(24.0)
    saved = {
        "whole": base.reshape(4, 6),
        "part": base.reshape(4, 6)[1:3, 2:].t(),
        "half": torch.arange(5).half(),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
    }
    root = open_torch(save_as_npu(saved, tmp_path / "f.pt", mark=mark, zipped=zipped)).root
    assert isinstance(root, dict) and list(root) == list(saved)
    assert all(same(root[name], tensor.detach()) for name, tensor in saved.items())


def test_an_npu_s_notes_of_its_format_are_no_views(tmp_path: Path) -> None:
    notes = {"base_sizes_/2/3/": True, "npu_format_/FRACTAL_NZ": True, "origin_format_/ND": True}
    tensor = torch.arange(6.0).reshape(2, 3)
    assert same(open_torch(save_with_marks(tensor, tmp_path / "n.pt", notes)).root, tensor)
    for marks in ({**notes, "neg": True}, {"conj": True}, {"folded": True}):
        value = open_torch(save_with_marks(tensor, tmp_path / "m.pt", marks)).root
        assert odd_tensor(value) is not None


def test_what_rebuilds_a_tensor_in_an_unknown_way_is_named(tmp_path: Path) -> None:
    class Tensor:
        def __reduce__(self) -> object:
            return _rebuild_abacus_tensor, (1, 2)

    with pytest.raises(
        FormatError, match=r"'w'.*rebuilt by '.*\._rebuild_abacus_tensor', which is not known"
    ):
        state_dict_of(open_torch(save({"w": Tensor(), "v": torch.ones(1)}, tmp_path / "f.pt")).root)
    path = save({"model": {"a": {"w": Tensor()}}, "args": None}, tmp_path / "model_optim_rng.pt")
    with pytest.raises(FormatError, match=r"'a\.w'.*_rebuild_abacus_tensor"):
        read_rank(path)


def _rebuild_abacus_tensor(*args: int) -> None:
    raise AssertionError("a file was run")


# Plain checkpoints


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.inner = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
        self.tied = self.a
        self.register_buffer("temporary", torch.ones(3), persistent=False)
        self.register_buffer("nothing", None)


@CONTAINERS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"state_dict": sd, "epoch": 3},
        lambda sd: {"model": sd, "best": torch.ones(1), "optimizer": {"state": {0: torch.ones(2)}}},
        lambda sd: {"module": {"state_dict": sd, "x": 1}},
        lambda sd: {"model_state_dict": sd},
    ],
    ids=["bare", "state_dict", "model", "nested", "model_state_dict"],
)
def test_state_dicts_are_found_where_people_put_them(tmp_path: Path, zipped: bool, wrap: object) -> None:
    sd = Net().state_dict()
    file = open_torch(save(wrap(sd), tmp_path / "f.pth", zipped))  # type: ignore[operator]
    tensors, notes = state_dict_of(file.root)
    assert list(tensors) == list(sd)
    assert all(same(tensors[k], v) for k, v in sd.items())
    if len(file.root) == 3:  # type: ignore[arg-type]
        assert any("optimizer" in n and "1 tensors" in n for n in notes)
        assert any("best" in n for n in notes)


@pytest.mark.filterwarnings("ignore")
@CONTAINERS
@pytest.mark.parametrize("wrapped", [True, False])
def test_whole_modules_are_walked(tmp_path: Path, zipped: bool, wrapped: bool) -> None:
    net = Net()
    file = open_torch(save({"model": net} if wrapped else net, tmp_path / "f.pt", zipped))
    tensors, _ = state_dict_of(file.root)
    sd = net.state_dict()
    assert list(tensors) == list(sd)
    assert all(same(tensors[k], v) for k, v in sd.items())


def test_what_is_not_a_state_dict_is_said(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="1 tensors without names"):
        state_dict_of(open_torch(save([torch.ones(1)], tmp_path / "f.pt")).root)


def test_modules_nested_without_end_are_refused() -> None:
    module = Record("Loop", state={"_parameters": {}, "_modules": {}})
    module.state["_modules"]["again"] = module  # type: ignore[index]
    module.state["_modules"]["twice"] = module  # type: ignore[index]
    with pytest.raises(FormatError, match="without end"):
        state_dict_of(module)


# What is not a torch file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"<html>", "HTML"),
        (b'{"a": 1}', "JSON"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x10\0\0\0\0\0\0\0{}" + b" " * 30, "safetensors"),
        (b"0" * 257 + b"ustar\x0000" + bytes(300), "tar"),
        (b"hello world", "hello"),
        (pickle.dumps({"a": 1}), "not of torch.save"),
        (b"PK\3\4", "cut off"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=said) as info:
        open_torch(path)
    assert info.value.where == str(path)


def small() -> dict[str, object]:
    return {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "n": 1}


@CONTAINERS
def test_every_truncation_is_refused(tmp_path: Path, zipped: bool) -> None:
    whole = save(small(), tmp_path / "f.pt", zipped).read_bytes()
    path = tmp_path / "cut.pt"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            open_torch(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(FormatError):
        open_torch(path)


@CONTAINERS
def test_flipped_bits_never_crash_and_tensors_stay_inside_the_file(tmp_path: Path, zipped: bool) -> None:
    whole = save(small(), tmp_path / "f.pt", zipped).read_bytes()
    path = tmp_path / "flipped.pt"
    rng = random.Random(5)
    for _ in range(700):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            root = open_torch(path).root
        except FormatError:
            continue
        for value in root.values() if isinstance(root, dict) else ():
            if isinstance(value, FileTensor):
                assert (
                    0 <= value.offset <= value.offset + value.dtype.itemsize * bool(value.numel) <= len(whole)
                )


def _zip(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def _pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def test_archives_by_other_writers_are_read(tmp_path: Path) -> None:
    pkl = _pickle_of(save({"w": torch.ones(3)}, tmp_path / "f.pt"))
    path = _zip(tmp_path / "g.pt", {"x/data.pkl": pkl, "x/data/0": b"\0\0\x80?" * 3})
    assert same(open_torch(path).root["w"], torch.ones(3))  # type: ignore[index]


N = b"\x80\x02N."


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"a/b.txt": b""}, "no data.pkl"),
        ({"data.pkl": N}, "no data.pkl"),
        ({"a/data.pkl": N, "b/data.pkl": N}, "several data.pkl"),
        ({"a/b/data.pkl": N}, "data.pkl"),
        ({"a/data.pkl": N, "../../etc/passwd": b"x"}, "leaves the archive"),
        ({"a/data.pkl": N, "/etc/passwd": b"x"}, "leaves the archive"),
        ({"a/data.pkl": N, "a/byteorder": b"big"}, "big-endian"),
        ({"a/data.pkl": N, "a/constants.pkl": N}, "TorchScript"),
        ({"a/data.pkl": N, "a/code/x.py": b""}, "TorchScript"),
    ],
)
def test_archives_that_are_not_tensors_are_refused(
    tmp_path: Path, entries: dict[str, bytes], said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        open_torch(_zip(tmp_path / "f.pt", entries))


def test_compressed_entries_are_refused_before_they_unfold(tmp_path: Path) -> None:
    path = _zip(tmp_path / "bomb.pt", {"a/data.pkl": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(FormatError, match="compressed"):
        open_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def _patched(path: Path, signature: bytes, offset: int, value: bytes, which: int = 0) -> Path:
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)
    return path


CENTRAL, END, END64 = b"PK\1\2", b"PK\5\6", b"PK\6\6"


@pytest.mark.parametrize(
    ("signature", "offset", "value"),
    [
        (CENTRAL, 8, b"\x01\x00"),  # encrypted
        (CENTRAL, 10, b"\x08\x00"),  # deflated
        (CENTRAL, 20, b"\xff\xff\xff\x7f"),  # sizes
        (CENTRAL, 24, b"\xff\xff\xff\x7f"),
        (CENTRAL, 20, b"\xff\xff\xff\x7f" * 2),
        (CENTRAL, 20, b"\xff\xff\xff\xff" * 2),
        (CENTRAL, 28, b"\xff\xff"),
        (CENTRAL, 34, b"\x01\x00"),
        (CENTRAL, 42, b"\x05\x00\x00\x00"),
        (CENTRAL, 42, b"\xff\xff\xff\xff"),
        (b"PK\3\4", 6, b"\x01\x00"),
        (b"PK\3\4", 8, b"\x08\x00"),
        (b"PK\3\4", 26, b"\x01\x00"),
        (b"PK\3\4", 28, b"\xff\xff"),
        (END, 4, b"\x01\x00"),
        (END, 8, b"\x01\x00"),
        (END, 12, b"\x00\x00\x00\x00"),
        (END, 16, b"\x00\x00\x00\x00"),
        (END, 20, b"\x05\x00"),
        (END64, 24, b"\xff" * 16),
        (END64, 40, b"\xff" * 8),
        (END64, 48, b"\xff" * 8),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, signature: bytes, offset: int, value: bytes) -> None:
    with pytest.raises(FormatError):
        open_torch(_patched(save(small(), tmp_path / "f.pt"), signature, offset, value))


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    path = save(small(), tmp_path / "f.pt")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        at = archive.getinfo("f/data/0").header_offset
    _patched(path, CENTRAL, 42, struct.pack("<L", at), names.index("f/data/1"))
    assert path.read_bytes() != data
    with pytest.raises(FormatError, match="overlaps"):
        open_torch(path)


def _rebuilt(storage: bytes, call: bytes) -> bytes:
    """Pickle a tensor by hand."""
    pid = b"(X\x07\0\0\0storage" + storage + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + pid + call + b"tR."


FLOATS = b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06"
TAIL = b"\x89}"


@pytest.mark.parametrize(
    ("storage", "call"),
    [
        (FLOATS, b"K\x01K\x06\x85K\x01\x85" + TAIL),  # one too far
        (FLOATS, b"K\x00K\x03\x85K\x03\x85" + TAIL),
        (FLOATS, b"K\x00J\xff\xff\xff\xff\x85K\x01\x85" + TAIL),
        (FLOATS, b"K\x05K\x02\x85J\xff\xff\xff\xff\x85" + TAIL),
        (FLOATS, b"J\xff\xff\xff\xffK\x02\x85K\x01\x85" + TAIL),
        (FLOATS, b"K\x00K\x02\x85K\x01K\x01\x86" + TAIL),
        (FLOATS, b"K\x00K\x02K\x01\x85" + TAIL),
        (FLOATS, b"K\x00X\x01\0\0\0a\x85K\x01\x85" + TAIL),
        (FLOATS, b"K\x00\x88\x85K\x01\x85" + TAIL),
        (FLOATS, b"K\x00(" + b"K\x01" * 100 + b"t(" + b"K\x01" * 100 + b"t" + TAIL),
        (
            FLOATS,
            b"K\x00\x8a\x07" + b"\xff" * 6 + b"\x3f\x8a\x07" + b"\xff" * 6 + b"\x3f\x86K\x00K\x00\x86" + TAIL,
        ),
        (FLOATS, b"K\x00"),
        (FLOATS[:-1] + b"\x07", b"K\x00K\x06\x85K\x01\x85" + TAIL),  # other length than the entry
        (FLOATS.replace(b"Float", b"Double"), b"K\x00K\x03\x85K\x01\x85" + TAIL),
        (FLOATS.replace(b"Float", b"Evil"), b"K\x00K\x03\x85K\x01\x85" + TAIL),
        (FLOATS.replace(b"torch\n", b"os\n"), b"K\x00K\x03\x85K\x01\x85" + TAIL),
        (FLOATS.replace(b"\x000X", b"\x009X"), b"K\x00K\x03\x85K\x01\x85" + TAIL),  # no such entry
        (FLOATS.replace(b"X\x01\0\0\x000", b"K\x00"), b"K\x00K\x03\x85K\x01\x85" + TAIL),
        (b"K\x00", b"K\x00K\x03\x85K\x01\x85" + TAIL),
    ],
)
def test_views_outside_their_storage_are_refused(tmp_path: Path, storage: bytes, call: bytes) -> None:
    good = _zip(
        tmp_path / "g.pt",
        {"a/data.pkl": _rebuilt(FLOATS, b"K\x00K\x06\x85K\x01\x85" + TAIL), "a/data/0": bytes(24)},
    )
    assert same(open_torch(good).root, torch.zeros(6))
    with pytest.raises(FormatError):
        open_torch(_zip(tmp_path / "f.pt", {"a/data.pkl": _rebuilt(storage, call), "a/data/0": bytes(24)}))


@CONTAINERS
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, zipped: bool) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = save({"w": torch.ones(2), "x": Evil()}, tmp_path / "f.pt", zipped)
    with pytest.raises(FormatError, match=r"calls '(posix|nt)\.system'"):
        open_torch(path)
    assert not (tmp_path / "ran").exists()


def _legacy(body: bytes, keys: bytes, tail: bytes) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    return b"".join(pickle.dumps(v, 2) for v in head) + body + keys + tail


def _pid(view: bytes) -> bytes:
    return FLOATS + view


KEYS = pickle.dumps(["0"], 2)
DATA = struct.pack("<q6f", 6, *range(6))
WHOLE = b"K\x00K\x02\x85K\x01\x85" + TAIL


@pytest.mark.parametrize(("view", "first"), [(b"", 0.0), (b"N", 0.0), (b"(X\x01\0\0\x001K\x03K\x02t", 3.0)])
def test_legacy_views_and_short_ids(tmp_path: Path, view: bytes, first: float) -> None:
    path = tmp_path / "f.pt"
    path.write_bytes(_legacy(_rebuilt(_pid(view), WHOLE), KEYS, DATA))
    root = open_torch(path).root
    assert isinstance(root, FileTensor)
    assert read(root).tolist() == [first, first + 1]


@pytest.mark.parametrize(
    ("view", "keys", "tail"),
    [
        (b"(X\x01\0\0\x001K\x05K\x02t", KEYS, DATA),
        (b"(X\x01\0\0\x001K\x05K\x01t", KEYS, DATA),
        (b"(K\x05K\x01t", KEYS, DATA),
        (b"N", KEYS, struct.pack("<q6f", 7, *range(6))),
        (b"N", KEYS, struct.pack("<q6f", -1, *range(6))),
        (b"N", KEYS, struct.pack("<q6f", 1 << 60, *range(6))),
        (b"N", KEYS, DATA + b"x"),
        (b"N", pickle.dumps([], 2), b""),
        (b"N", pickle.dumps(["0", "0"], 2), DATA * 2),
        (b"N", pickle.dumps(["0", "1"], 2), DATA * 2),
        (b"N", pickle.dumps({"0": 1}, 2), DATA),
    ],
)
def test_damaged_streams_are_refused(tmp_path: Path, view: bytes, keys: bytes, tail: bytes) -> None:
    path = tmp_path / "f.pt"
    path.write_bytes(_legacy(_rebuilt(_pid(view), WHOLE), keys, tail))
    with pytest.raises(FormatError):
        open_torch(path)


@CONTAINERS
def test_data_is_not_read(tmp_path: Path, zipped: bool) -> None:
    path = save({"w": torch.zeros(8_000_000)}, tmp_path / "f.pt", zipped)
    tracemalloc.start()
    open_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
