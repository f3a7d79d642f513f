"""The structure of HDF5 files is read as h5py reads it; what lies is refused by name and soon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptconv.containers.hdf5 import open_hdf5
from ckptconv.errors import CkptconvError, FormatError
from tensorflow_models import unpack


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("tensorflow"))


@pytest.fixture
def model(models: Path) -> bytes:
    return (models / "bert-mlm" / "source" / "tf_model.h5").read_bytes()


def refused(folder: Path, raw: bytes, says: str = "") -> None:
    path = folder / "x.h5"
    path.write_bytes(raw)
    start = time.monotonic()
    with pytest.raises(CkptconvError) as caught:
        open_hdf5(path)
    assert says in caught.value.message, caught.value.message
    assert time.monotonic() - start < 5


def test_a_real_model(models: Path) -> None:
    root = open_hdf5(models / "bert-mlm" / "source" / "tf_model.h5")
    assert root.texts["layer_names"] == ("bert", "mlm___cls")
    layer = root.groups["mlm___cls"]
    assert dict(layer.walk()).keys() == set(layer.texts["weight_names"])
    words = dict(root.walk())["bert/tf_bert_for_masked_lm/bert/embeddings/word_embeddings/weight:0"]
    assert (words.shape, words.dtype.name) == ((72, 16), "float32")


def test_all_that_h5py_sees(models: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for path in sorted(models.rglob("*.h5")):
        theirs = {}

        def note(name: str, item: Any, theirs: dict[str, Any] = theirs) -> None:
            if isinstance(item, h5py.Dataset):
                theirs[name] = (item.shape, str(item.dtype), item.id.get_offset())

        with h5py.File(path) as file:
            file.visititems(note)
        ours = {n: (t.shape, t.dtype.name, t.offset) for n, t in open_hdf5(path).walk()}
        assert ours == theirs and ours


def test_types_and_many_members(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for kind in ("f8", "f4", "f2", "i8", "i4", "u1", "?"):
            file[kind] = np.arange(3).astype(kind)
        file["scalar"] = np.float32(2)
        file["empty"] = np.zeros((0, 3), "f4")
        for i in range(700):  # more than a node of a group's tree holds
            file[f"many/{i}"] = np.full(2, i, "f4")
        file.attrs["short"] = [b"a", b"bc"]
        file.attrs["long"] = ["d\u20ac", "", "f"]
        file.attrs["number"] = 3
        file.attrs["none"] = []
    root = open_hdf5(path)
    found = dict(root.walk())
    assert [found[k].dtype.name for k in ("f8", "f4", "f2", "i8", "i4", "u1", "?")] == [
        "float64", "float32", "float16", "int64", "int32", "uint8", "bool"
    ]  # fmt: skip
    assert found["scalar"].shape == () and found["empty"].shape == (0, 3)
    raw = path.read_bytes()
    for i in range(700):
        tensor = found[f"many/{i}"]
        assert np.frombuffer(raw, "<f4", 2, tensor.offset).tolist() == [i, i]
    assert root.texts == {"short": ("a", "bc"), "long": ("d\u20ac", "", "f"), "none": ()}
    assert root.attributes == {"short", "long", "number", "none"}


@pytest.mark.parametrize(
    "options, says",
    [
        ({"chunks": (2, 2)}, "chunked"),
        ({"compression": "gzip"}, "compressed"),
        ({"shuffle": True}, "filtered"),
        ({"maxshape": (None, 4)}, "chunked"),
        ({"dtype": ">f4"}, "type"),
        ({"dtype": "S5"}, "type"),
        ({"external": "other.bin"}, "another file"),
    ],
)
def test_what_is_no_run_of_numbers_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], says: str
) -> None:
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)  # where the other file is made
    with h5py.File(tmp_path / "made.h5", "w") as file:
        file.create_dataset("layer/w", (4, 4), **{"dtype": "f4", **options})
        if "dtype" not in options:
            file["layer/w"][...] = 1
    raw = (tmp_path / "made.h5").read_bytes()
    refused(tmp_path, raw, "layer/w")
    refused(tmp_path, raw, says)


def test_links_and_newer_layouts_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "made.h5"
    with h5py.File(path, "w") as file:
        file["a/b"] = np.ones(2)
        file["a/again"] = file["a"]  # a circle
    refused(tmp_path, path.read_bytes(), "circle")
    for link in (h5py.SoftLink("/a"), h5py.ExternalLink("other.h5", "/")):
        with h5py.File(path, "w") as file:
            file["a/b"] = np.ones(2)
            file["a/c"] = link
        refused(tmp_path, path.read_bytes())
    with h5py.File(path, "w", libver="latest") as file:
        file["a/b"] = np.ones(2)
    refused(tmp_path, path.read_bytes(), "superblock version")
    with h5py.File(path, "w") as file:
        file.create_dataset("never", (3,), "f4")
    refused(tmp_path, path.read_bytes(), "never written")


def _at(raw: bytes, sign: bytes) -> int:
    at = raw.find(sign)
    assert at >= 0
    return at


def test_a_group_that_holds_itself(tmp_path: Path, model: bytes) -> None:
    raw = bytearray(model)
    node = _at(raw, b"SNOD")
    root = raw[64:72]
    raw[node + 16 : node + 24] = root  # its first member is the root
    refused(tmp_path, bytes(raw), "circle")


def test_a_tree_that_goes_round(tmp_path: Path, model: bytes) -> None:
    raw = bytearray(model)
    tree = _at(raw, b"TREE")
    raw[tree + 32 : tree + 40] = tree.to_bytes(8, "little")
    refused(tmp_path, bytes(raw), "circle")


def test_data_beyond_the_end(tmp_path: Path, models: Path, model: bytes) -> None:
    tensor = next(t for _, t in open_hdf5(models / "bert-mlm" / "source" / "tf_model.h5").walk())
    place = tensor.offset.to_bytes(8, "little") + tensor.nbytes.to_bytes(8, "little")
    assert model.count(place) == 1
    for offset in (len(model) - 4, len(model), 1 << 62, (1 << 64) - 2):
        lie = offset.to_bytes(8, "little") + tensor.nbytes.to_bytes(8, "little")
        refused(tmp_path, model.replace(place, lie), "ends at byte")
    undefined = (1 << 64) - 1
    refused(tmp_path, model.replace(place, undefined.to_bytes(8, "little") + place[8:]), "never written")
    refused(tmp_path, model.replace(place, place[:8] + (8).to_bytes(8, "little")), "its shape says")


def test_a_file_cut_off(tmp_path: Path, model: bytes) -> None:
    for size in (0, 7, 8, 95, 96, 200, 2000, len(model) // 2, len(model) - 1):
        refused(tmp_path, model[:size])


@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_end_in_a_result_or_an_error_by_name(tmp_path: Path, model: bytes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "x.h5"
    for _ in range(40):
        raw = bytearray(model)
        for at in rng.integers(0, 8000, 4):
            raw[at] = rng.integers(0, 256)
        path.write_bytes(raw)
        start = time.monotonic()
        try:
            for _, tensor in open_hdf5(path).walk():
                assert tensor.offset + tensor.nbytes <= len(raw)
        except FormatError:
            pass
        assert time.monotonic() - start < 5
