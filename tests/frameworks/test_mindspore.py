"""MindSpore loads what is written for it, and what it writes fresh is read: equal, bit for bit.

``make test-frameworks`` runs these tests in an environment of their own, where MindSpore is installed (CPU).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import ckptconv
from ckptconv.containers.mindspore.mindspore import check_crc

mindspore = pytest.importorskip("mindspore")
pytestmark = pytest.mark.frameworks

Array = npt.NDArray[Any]
CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
KINDS = {
    "float32": np.float32,
    "float16": np.float16,
    "float64": np.float64,
    "int8": np.int8,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "bool_": np.bool_,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a Hugging Face model of random numbers."""
    from ckptconv.families import find_family

    folder = tmp_path_factory.mktemp("hf")
    family = find_family("qwen2")
    assert family is not None
    rng = np.random.default_rng(3)
    tensors = {n: rng.standard_normal(s, np.float32) for n, s, _ in family.expected(CONFIG)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def _bytes(parameter: Any) -> bytes:
    if parameter.dtype == mindspore.bfloat16:  # exact in float32, from where the upper half is the value
        wide = parameter.astype(mindspore.float32).asnumpy()
        return (wide.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return bytes(parameter.asnumpy().tobytes())


@pytest.mark.parametrize("container", ["ckpt", "safetensors"])
@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float16"])
@pytest.mark.parametrize("fused", [False, True])
def test_mindspore_loads_what_is_written(
    model: Path, tmp_path: Path, container: Any, dtype: Any, fused: bool
) -> None:
    ckptconv.convert(
        model, tmp_path / "ms", to="mindformers", format=container, dtype=dtype, qkv_concat=fused
    )
    written = ckptconv.open(tmp_path / "ms")
    path = tmp_path / "ms" / f"checkpoint.{container}"
    loaded = mindspore.load_checkpoint(str(path), format=container)
    assert loaded.keys() == set(written)
    for name, parameter in loaded.items():
        assert tuple(parameter.shape) == written[name].shape
        assert _bytes(parameter) == written.read(name).tobytes(), name


def test_mindspore_joins_the_parts_of_a_large_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptconv.containers.mindspore import mindspore_out

    original = mindspore_out.layout
    monkeypatch.setattr(mindspore_out, "layout", lambda tensors: original(tensors, record=4096))
    big = np.arange(100 * 300, dtype=np.float32).reshape(100, 300)
    mindspore.save_checkpoint([{"name": "big", "data": mindspore.Tensor(big)}], str(tmp_path / "in.ckpt"))
    ckptconv.convert(tmp_path / "in.ckpt", tmp_path / "out", to="mindformers")
    loaded = mindspore.load_checkpoint(str(tmp_path / "out" / "checkpoint.ckpt"))
    assert np.array_equal(loaded["big"].asnumpy(), big)


@pytest.mark.parametrize("crc", [False, True])
def test_what_mindspore_writes_is_read(tmp_path: Path, crc: bool) -> None:
    rng = np.random.default_rng(5)
    arrays = {name: (rng.standard_normal((3, 5)) * 40).astype(kind) for name, kind in KINDS.items()}
    values = [{"name": f"w.{n}", "data": mindspore.Tensor(a)} for n, a in arrays.items()]
    half = mindspore.Tensor(arrays["float32"]).astype(mindspore.bfloat16)
    values.append({"name": "w.bfloat16", "data": half})
    path = tmp_path / "fresh.ckpt"
    mindspore.save_checkpoint(values, str(path), crc_check=crc, append_dict={"step_num": 7, "note": "text"})
    assert check_crc(path) is crc
    found = ckptconv.open(path)
    assert set(found) == {v["name"] for v in values}
    for value in values:
        assert found.read(value["name"]).tobytes() == _bytes(value["data"]), value["name"]
    assert found.checkpoint.iteration == 7


def test_a_fresh_safetensors_file_is_read(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    path = tmp_path / "fresh"
    mindspore.save_checkpoint(
        [{"name": "w", "data": mindspore.Tensor(array)}], str(path), format="safetensors"
    )
    found = ckptconv.open(path.with_suffix(".safetensors"))
    assert np.array_equal(found.read("w"), array)


def test_a_trained_net_keeps_its_optimizer(tmp_path: Path) -> None:
    from mindspore import nn

    net = nn.Dense(6, 4)
    optimizer = nn.AdamWeightDecay(net.trainable_params())
    both = nn.CellList([net])
    parameters = [{"name": p.name, "data": p} for p in (*both.get_parameters(), *optimizer.get_parameters())]
    named = {p["name"]: p for p in parameters}
    mindspore.save_checkpoint(list(named.values()), str(tmp_path / "net.ckpt"))
    ckptconv.convert(tmp_path / "net.ckpt", tmp_path / "out", to="mindformers")
    loaded = mindspore.load_checkpoint(str(tmp_path / "out" / "checkpoint.ckpt"))
    assert loaded.keys() == named.keys()
    assert any(name.startswith("adam_m.") for name in loaded)
    assert all(_bytes(loaded[n]) == _bytes(named[n]["data"]) for n in named)
