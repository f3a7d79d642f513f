"""A Hugging Face folder or file is read as from_pretrained would choose its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckptconv.errors import FormatError, PlanError
from ckptconv.readers.huggingface import READER
from ckptconv.readers.registry import open_checkpoint

W, V = torch.arange(6.0).reshape(2, 3), torch.arange(4.0).bfloat16()


def _shards(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    save_file({"w": W}, folder / "model-00001-of-00002.safetensors")
    save_file({"v": V}, folder / "model-00002-of-00002.safetensors")
    found = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": found if weight_map is None else weight_map}))
    return index


@pytest.mark.parametrize("inside", ["", "model.safetensors.index.json"])
def test_shards(tmp_path: Path, inside: str) -> None:
    _shards(tmp_path)
    found = open_checkpoint(tmp_path / inside)
    assert found.producer == "huggingface" and "2 files" in found.format and found.root == tmp_path
    assert {n: (s.shape, s.dtype) for n, s in found.tensors.items()} == {
        "w": ((2, 3), "float32"),
        "v": ((4,), "bfloat16"),
    }
    assert len({f.path for f in found.files}) == 3


def test_one_shard_is_a_model_of_its_own(tmp_path: Path) -> None:
    _shards(tmp_path)
    assert list(open_checkpoint(tmp_path / "model-00002-of-00002.safetensors").tensors) == ["v"]


def test_safetensors_win_over_bin(tmp_path: Path) -> None:
    save_file({"w": W}, tmp_path / "model.safetensors")
    torch.save({"old": V}, tmp_path / "pytorch_model.bin")
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]


def test_a_bin_with_tied_weights(tmp_path: Path) -> None:
    torch.save({"embed": W, "head": W, "copy": W.clone()}, tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    assert list(found.tensors) == ["embed", "copy"] and found.aliases == {"head": "embed"}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("not json", FormatError),
        ("{}", FormatError),
        ("[]", FormatError),
        ('{"weight_map": []}', FormatError),
        ('{"weight_map": {"w": 1}}', FormatError),
        ('{"weight_map": {"w": "../model.safetensors"}}', FormatError),
        ('{"weight_map": {"w": "/etc/passwd"}}', FormatError),
        ('{"weight_map": {"w": "model-00009-of-00009.safetensors"}}', PlanError),
        ('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}', PlanError),
        ('{"weight_map": {"w": "model-00002-of-00002.safetensors"}}', PlanError),
    ],
)
def test_an_index_that_is_wrong(tmp_path: Path, content: str, error: type[Exception]) -> None:
    _shards(tmp_path).write_text(content)
    with pytest.raises(error):
        open_checkpoint(tmp_path)


def test_what_it_recognises(tmp_path: Path) -> None:
    _shards(tmp_path)
    (tmp_path / "empty").mkdir()
    names = ("", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    assert all(READER.recognise(tmp_path / n) for n in names)
    assert not any(READER.recognise(tmp_path / n) for n in ("empty", "none", "config.json"))
