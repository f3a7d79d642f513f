"""HDF5 files that are laid out hold what was declared, as we read it and as h5py does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckptconv.containers.base import FileLayout
from ckptconv.containers.hdf5 import open_hdf5
from ckptconv.containers.hdf5_out import Dataset, Node, layout
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import PlanError

KINDS = ("float32", "float16", "float64", "int64", "int32", "uint8")


def tree(members: int) -> Node:
    root = Node(texts={"layer_names": ["a", "b\u20ac"]}, words={"backend": "tensorflow"})
    for layer in ("a", "b\u20ac"):
        node = Node(texts={"weight_names": [f"scope/layer_._{i}/kernel:0" for i in range(members)]})
        for i, name in enumerate(node.texts["weight_names"]):
            shape = () if i % 7 == 0 else (i % 4, 3)
            node.put(name, Dataset(f"{layer}{i}", BY_NAME[KINDS[i % len(KINDS)]], shape))
        root.members[layer] = node
    root.members["none"] = Node(texts={"weight_names": []})
    return root


def written(made: FileLayout, path: Path) -> dict[str, np.ndarray]:
    """Write a file with random values; return them by tensor."""
    raw, rng = bytearray(made.size), np.random.default_rng(0)
    for at, part in made.fixed:
        raw[at : at + len(part)] = part
    values = {}
    for t in made.tensors:
        values[t.name] = rng.integers(0, 100, t.shape).astype(t.dtype.name)
        raw[t.offset : t.offset + t.nbytes] = values[t.name].tobytes()
    path.write_bytes(raw)
    return values


@pytest.mark.parametrize("members", [0, 1, 8, 9, 300, 3000])
def test_what_is_laid_out_is_read(tmp_path: Path, members: int) -> None:
    path = tmp_path / "x.h5"
    values = written(layout(tree(members)), path)
    root, raw = open_hdf5(path), path.read_bytes()
    assert root.texts["layer_names"] == ("a", "b\u20ac") and root.texts["backend"] == ("tensorflow",)
    assert root.groups["none"].texts == {"weight_names": ()}
    assert len(list(root.walk())) == 2 * members == len(values)
    for layer, group in root.groups.items():
        inside = dict(group.walk())
        keys = sorted(group.texts, key=lambda k: (len(k), k))
        for i, name in enumerate(n for k in keys for n in group.texts[k]):
            tensor, value = inside[name], values[f"{layer}{i}"]
            assert (tensor.shape, tensor.dtype.name) == (value.shape, value.dtype.name)
            assert raw[tensor.offset : tensor.offset + tensor.nbytes] == value.tobytes()


@pytest.mark.parametrize("members", [1, 300, 3000])
def test_h5py_reads_it(tmp_path: Path, members: int) -> None:
    h5py = pytest.importorskip("h5py")
    values = written(layout(tree(members)), tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        for layer in ("a", "b\u20ac"):
            group = file[layer]
            keys = sorted(group.attrs, key=lambda k: (len(k), k))
            assert keys == (["weight_names"] if members < 3000 else ["weight_names0", "weight_names1"])
            names = [n.decode() for k in keys for n in group.attrs[k]]
            for i, name in enumerate(names):
                found, value = group[name][()], values[f"{layer}{i}"]
                assert found.dtype == value.dtype and np.array_equal(found, value)
            assert len(names) == members


def test_two_of_one_name_and_types_without_a_form_are_refused() -> None:
    node = Node()
    node.put("a/b", Dataset("x", BY_NAME["float32"], (2,)))
    for name in ("a/b", "a/b/c"):
        with pytest.raises(PlanError, match="a/b"):
            node.put(name, Dataset("y", BY_NAME["float32"], (2,)))
    bad = Node()
    bad.put("w", Dataset("w", BY_NAME["bfloat16"], (2,)))
    with pytest.raises(PlanError, match="bfloat16"):
        layout(bad)
