"""A plain torch file is read whatever its state dict is wrapped in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptconv
from ckptconv.errors import FormatError

W = torch.arange(6.0).reshape(2, 3)


class Net(torch.nn.Module):
    """A module of one's own, which nobody else can import."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)])
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def _open(path: Path, content: object, **options: object) -> ckptconv.Model:
    torch.save(content, path, **options)  # type: ignore[arg-type]
    return ckptconv.open(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize(
    "wrap", [(), ("state_dict",), ("model",), ("module",), ("model", "state_dict")], ids=repr
)
def test_a_state_dict_bare_or_nested(tmp_path: Path, suffix: str, wrap: tuple[str, ...]) -> None:
    content: object = {"a.weight": W, "a.bias": W[0].half()}
    for key in reversed(wrap):
        content = {key: content, "epoch": 3}
    model = _open(tmp_path / f"x{suffix}", content)
    assert {n: (i.shape, i.dtype.name) for n, i in model.items()} == {
        "a.weight": ((2, 3), "float32"),
        "a.bias": ((3,), "float16"),
    }
    assert model.checkpoint.producer == "torch"
    assert bool(wrap) == any("epoch" in note.text for note in model.checkpoint.notes)


@pytest.mark.parametrize("zipped", [True, False])
def test_values(tmp_path: Path, zipped: bool) -> None:
    tensors = {
        "plain": W, "transposed": W.T, "column": torch.arange(20.0).reshape(4, 5)[:, 1:3],
        "scalar": torch.tensor(7), "empty": torch.empty(0, 3), "flags": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
    }  # fmt: skip
    model = _open(tmp_path / "x.pt", tensors, _use_new_zipfile_serialization=zipped)
    for name, tensor in tensors.items():
        assert model.read(name).tolist() == tensor.tolist()
        assert model.read(name).shape == tuple(tensor.shape)


def test_a_module_pickled_whole(tmp_path: Path) -> None:
    net = Net()
    model = _open(tmp_path / "x.pt", net)
    expected = net.state_dict()
    assert set(model) == set(expected)
    assert all(model.read(n).tolist() == t.tolist() for n, t in expected.items())


def test_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    model = _open(tmp_path / "x.pt", {"embed": W, "head": W, "view": W[:1]})
    assert set(model) == {"embed", "view"}
    assert model.checkpoint.aliases == {"head": "embed"}


def test_a_tensor_repeated_by_expand_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expand") as caught:
        _open(tmp_path / "x.pt", {"w": torch.ones(1, 3).expand(4, 3)})
    assert caught.value.where == str(tmp_path / "x.pt") and caught.value.hint


@pytest.mark.parametrize("content", [{}, [], 3, {"epoch": 3}, {"model": {}}, [W]], ids=repr)
def test_a_file_without_a_state_dict_is_named(tmp_path: Path, content: object) -> None:
    with pytest.raises(FormatError, match="no state dict") as caught:
        _open(tmp_path / "x.pt", content)
    assert caught.value.hint
    assert caught.value.where == str(tmp_path / "x.pt")
