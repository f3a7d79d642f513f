"""Pickles and archives made to do harm: nothing runs, they cost little, and the error says what they are."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from ckptconv.containers.stored import from_file_tensor
from ckptconv.containers.torch.inert import load
from ckptconv.containers.torch.nesting import check_nesting
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import CkptconvError, FormatError
from running import ROOT, fails, final_names

_MEMORY = 1 << 30
_SECONDS = 60


def _keys(keys: list[bytes]) -> bytes:
    return b"}(" + b"".join(key + b"N" for key in keys) + b"u."


def _complex(real: int, imaginary: int) -> bytes:
    return b"h\0" + b"F%d\nF%d\n\x86R" % (real, imaginary)


_SAME_HASH = (1 << 61) - 1
_MAKE_COMPLEX = b"cbuiltins\ncomplex\nq\x000"
# Each would be quadratic or exponential for one who does as it says.
BOMBS = {
    "integers of one hash": _keys([b"I%d\n" % (k * _SAME_HASH) for k in range(1, 40_000)]),
    "complex numbers of one hash": _MAKE_COMPLEX
    + _keys([_complex(10**12 - 1_000_003 * k, k) for k in range(40_000)]),
    "memo places of one hash": b"N" + b"".join(b"p%d\n" % (k * _SAME_HASH) for k in range(1, 40_000)) + b".",
    "sets": b"(" + b"\x8f" * 2_000_000 + b"t.",
    "records": b"ca\nb\nq\0(" + b"h\0)R" * 1_000_000 + b"t.",
    "marks": b"(" * 4_000_000 + b".",
    "a large key again and again": b"(" + b"N" * 250 + b"tq\x000}(" + b"h\0N" * 500_000 + b"u.",
    "a string of 4 GB": b"\x8d\xff\xff\xff\xff\0\0\0\0abc.",
    "an integer of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a long of 2 GB": b"\x8b\xff\xff\xff\x7fabc.",
}
_RUN = """
import resource, sys, time
from ckptconv.errors import FormatError
from ckptconv.containers.torch.inert import load
data = open(sys.argv[1], "rb").read()
try:
    load(data)
except FormatError as error:
    print("refused:", error.message)
else:
    print("read")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[name])

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))

    ran = subprocess.run(
        [sys.executable, "-c", _RUN, str(path)], preexec_fn=limited, capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    *_, peak = ran.stdout.split()
    assert int(peak) < 3 * _MEMORY, f"{int(peak):,} bytes"


@pytest.mark.parametrize(
    "code", [b"\x82\x01", b"\x83\x01\0", b"\x84\x01\0\0\0"], ids=["EXT1", "EXT2", "EXT4"]
)
def test_extension_codes(code: bytes) -> None:
    with pytest.raises(FormatError, match="private number"):
        load(b"\x80\x02" + code + b".")


@pytest.mark.parametrize("data", [b"Pabc\n.", b"\x8c\x01aQ."], ids=["PERSID", "BINPERSID"])
def test_persistent_ids_outside_a_container(data: bytes) -> None:
    with pytest.raises(FormatError, match="persistent id"):
        load(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cos\nsystem\n(Vid\nt\x81.",
        b"\x80\x04cos\nsystem\n(Vid\nt}\x92.",
        b"(ios\nsystem\nVid\n.",
        b"(Vid\nios\nsystem\n.",
        b"(cos\nsystem\nVid\no.",
        b"cbuiltins\ngetattr\n(cos\nVsystem\ntR(Vid\ntR.",
        b"c__builtin__\neval\n(V1\ntR.",
        b"ccopyreg\n__newobj_ex__\n(cos\nsystem\n(Vid\nt}tR.",
    ],
    ids=["NEWOBJ", "NEWOBJ_EX", "INST before", "INST", "OBJ", "getattr", "eval", "__newobj_ex__"],
)  # fmt: skip
def test_no_opcode_calls(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    try:
        load(data)
    except FormatError as error:
        assert error.message


def test_state_is_kept_never_set() -> None:
    """BUILD calls ``__setstate__`` or fills ``__dict__`` in pickle; here it is data of a record."""
    found = load(b"ca\nB\n)R}Vx\nI1\nsb.")
    assert found.cls == "a.B" and found.state == {"x": 1}  # type: ignore[attr-defined]


def _cycle() -> object:
    value: dict[str, object] = {}
    value["self"] = [value]
    return value


def _deep(levels: int) -> object:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


def _shared(levels: int) -> object:
    value: list[object] = [1]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize("value", [_cycle(), _deep(100_000), _shared(60)], ids=["cycle", "deep", "shared"])
def test_what_a_walker_would_not_end_is_refused(value: object) -> None:
    with pytest.raises(FormatError, match=r"hold|nested"):
        check_nesting({"model": value})


def test_what_is_shared_as_real_files_share_is_read() -> None:
    one = [1, 2, 3]
    check_nesting({"a": [one] * 1000, "b": (one, {"c": one}), "d": dict.fromkeys(range(1000), one)})


def test_a_view_that_repeats_its_elements_without_end(tmp_path: Path) -> None:
    """Of 3,000 elements a view of a billion: a list of its runs would take all memory."""
    tensor = torch.ones(3000).as_strided((1000, 1000, 1000), (1, 1, 1))
    torch.save({"w": tensor}, tmp_path / "x.pt")
    root = open_torch(tmp_path / "x.pt").root
    with pytest.raises(FormatError, match="repeats"):
        from_file_tensor(root["w"])  # type: ignore[index]


def _archive(path: Path, **change: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", **change) as new:  # type: ignore[arg-type]
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return path.read_bytes()


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"(" + b"N" * 200_000_000 + b"t.")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(FormatError, match="compressed"):
        open_torch(path)


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "archive/../../x"])
def test_zip_entries_that_leave_the_archive(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.pt"
    _archive(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(FormatError, match="leaves the archive"):
        open_torch(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_entries_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    _archive(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", b"N.")
    with pytest.raises(FormatError, match="twice"):
        open_torch(path)


def test_a_pickle_with_a_wrong_checksum(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a name": torch.ones(3)}, path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"a name", b"b name"))
    with pytest.raises(FormatError, match="CRC-32"):
        open_torch(path)


def test_a_name_cannot_speak_to_the_terminal() -> None:
    assert "\x1b" not in str(CkptconvError("the tensor \x1b[2J\x07"))
    assert len(str(CkptconvError("x" * 1_000_000))) < 20_000


class TestPathsInFiles:
    """A path that a file names stays in its folder; links, as in the hub's cache, are the user's own."""

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        from safetensors.torch import save_file

        (folder := tmp_path / "snapshots" / "model").mkdir(parents=True)
        (tmp_path / "blobs").mkdir()
        save_file({"w": torch.ones(3)}, tmp_path / "blobs" / "hash")
        return folder

    @staticmethod
    def _index(model: Path, file: str) -> None:
        index = {"metadata": {}, "weight_map": {"w": file}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    @pytest.mark.parametrize(
        "file", ["../../blobs/hash", "{blobs}/hash", "x/../../../blobs/hash", "..", "", ".", "a\0b", "sub/x"]
    )
    def test_an_index(self, model: Path, tmp_path: Path, file: str) -> None:
        self._index(model, file.replace("{blobs}", str(tmp_path / "blobs")))
        out = tmp_path / "out"
        fails(1, "convert", model, out, "--to", "hf", "--no-assets", naming=("outside its folder",), out=out)

    def test_links_of_the_hubs_cache(self, model: Path, tmp_path: Path) -> None:
        name = "model-00001-of-00001.safetensors"
        (model / name).symlink_to("../../blobs/hash")
        (tmp_path / "blobs" / "index").write_text(json.dumps({"metadata": {}, "weight_map": {"w": name}}))
        (model / "model.safetensors.index.json").symlink_to("../../blobs/index")
        from running import succeeds

        succeeds("convert", model, tmp_path / "out", "--to", "hf", "--no-assets", "--quiet")
        assert final_names(tmp_path / "out") == ["model.safetensors"]

    @pytest.mark.parametrize("text", ["../other", "/etc", "-1", "9" * 5000, "\0", "1/../2", ""])
    def test_megatrons_tracker(self, tmp_path: Path, text: str) -> None:
        run = tmp_path / "run"
        (tmp_path / "other" / "mp_rank_00").mkdir(parents=True)
        (run / "iter_0000001" / "mp_rank_00").mkdir(parents=True)
        for folder in (tmp_path / "other", run / "iter_0000001"):
            (folder / "mp_rank_00" / "model_optim_rng.pt").write_bytes(b"x")
        (run / "latest_checkpointed_iteration.txt").write_text(text)
        message = fails(1, "megatron-merge", run, tmp_path / "out", out=tmp_path / "out")
        assert str(tmp_path / "other") not in message
