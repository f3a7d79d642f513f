"""Weights as training leaves them: under a key, in a Trainer's run, under the names of FSDP and diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from running import fails, succeeds

Tensors = dict[str, torch.Tensor]
NET = {"a.weight": torch.arange(6.0).reshape(2, 3)}
EMA = {"a.weight": torch.arange(6.0).reshape(2, 3) + 1}


def written(out: Path) -> torch.Tensor:
    return load_file(out / "model.safetensors")["a.weight"]


@pytest.mark.parametrize(
    ("held", "key", "expected"),
    [
        ({"net": NET, "ema": EMA}, "net", NET),
        ({"net": NET, "ema": EMA}, "ema", EMA),
        ({"params": NET, "params_ema": EMA}, "params_ema", EMA),
        ({"state": {"student": NET, "teacher": EMA}}, "state.teacher", EMA),
        ({"state": {"my.net": EMA}}, "state.my.net", EMA),
        ([NET, EMA], "1", EMA),
        ({"ema": {"state_dict": EMA}, "model": NET}, "ema", EMA),
    ],
)
def test_weights_under_a_key(held: object, key: str, expected: Tensors, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "all.pt")
    flags = ("convert", tmp_path / "all.pt", tmp_path / "out", "--to", "hf", "--no-assets")
    succeeds(*flags, "--key", key)
    assert torch.equal(written(tmp_path / "out"), expected["a.weight"])
    fails(
        1, *flags[:2], tmp_path / "no", *flags[3:], "--key", "nowhere", naming=("nowhere", key.split(".")[0])
    )


def test_without_a_key_the_choices_are_listed(tmp_path: Path) -> None:
    torch.save({"net": NET, "ema": {**EMA, "b": torch.ones(2)}, "step": 3}, tmp_path / "all.pt")
    flags = ("convert", tmp_path / "all.pt", tmp_path / "out", "--to", "hf", "--no-assets")
    fails(1, *flags, naming=("--key", "net (1 tensors, 24 bytes)", "ema (2 tensors, 32 bytes)"))


def test_what_cannot_be_weights_is_listed_and_refused_by_name(tmp_path: Path) -> None:
    arrays = {k: v.numpy() for k, v in EMA.items()}
    held = {"net": NET, "ema": arrays, "shadow_params": list(EMA.values())}
    torch.save(held, tmp_path / "all.pt")
    flags = ("convert", tmp_path / "all.pt", tmp_path / "out", "--to", "hf", "--no-assets")
    said = ("net (1 tensors", "ema (1 arrays of numpy, 24 bytes)", "shadow_params (1 tensors without names")
    fails(1, *flags, naming=said)
    fails(1, *flags, "--key", "ema", naming=("arrays of numpy", "torch.from_numpy"))
    fails(1, *flags, "--key", "shadow_params", naming=("without names", "state_dict()"))
    torch.save(arrays, tmp_path / "arrays.pt")
    fails(1, "convert", tmp_path / "arrays.pt", *flags[2:], naming=("arrays of numpy", "torch.from_numpy"))


def test_a_compiled_module_is_the_module_inside(tmp_path: Path) -> None:
    made = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    torch.save({"net": torch.compile(made)}, tmp_path / "all.pt")
    flags = ("convert", tmp_path / "all.pt", tmp_path / "out", "--to", "hf", "--no-assets")
    fails(1, *flags, naming=("--key net (1 tensors, 24 bytes)",))
    succeeds(*flags, "--key", "net")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == {"0.weight"}


def test_pairs_of_a_name_and_a_tensor_are_a_state_dict(tmp_path: Path) -> None:
    torch.save(list(EMA.items()), tmp_path / "all.pt")
    succeeds("convert", tmp_path / "all.pt", tmp_path / "out", "--to", "hf", "--no-assets")
    assert torch.equal(written(tmp_path / "out"), EMA["a.weight"])


def test_a_key_is_for_files_of_torch(tmp_path: Path) -> None:
    save_file(NET, tmp_path / "model.safetensors")
    flags = ("--to", "hf", "--no-assets", "--key", "net")
    fails(2, "convert", tmp_path / "model.safetensors", tmp_path / "out", *flags, naming=("--key",))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step, tensors in ((5, NET), (10, EMA)):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors")
    (tmp_path / "run" / "checkpoint-20").mkdir()  # a save that was cut off
    return tmp_path / "run"


def test_a_trainers_run_is_read_by_its_newest_model(run: Path, tmp_path: Path) -> None:
    result = succeeds("convert", run, tmp_path / "out", "--to", "hf", "--no-assets")
    assert torch.equal(written(tmp_path / "out"), EMA["a.weight"]) and "checkpoint-10" in result.err
    assert "checkpoint-10" in succeeds("inspect", run).err
    for step in ("5", "checkpoint-5"):
        out = tmp_path / step
        succeeds("convert", run, out, "--to", "hf", "--no-assets", "--step", step)
        assert torch.equal(written(out), NET["a.weight"])
    flags = ("--to", "hf", "--no-assets", "--step", "7")
    fails(2, "convert", run, tmp_path / "no", *flags, naming=("checkpoint-5", "checkpoint-10"))


def test_fsdps_full_state_dict_in_a_trainers_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    torch.save(NET, folder / "pytorch_model_fsdp.bin")
    torch.save({"state": {}}, folder / "optimizer.bin")
    succeeds("convert", folder, tmp_path / "out", "--to", "hf", "--no-assets")
    assert torch.equal(written(tmp_path / "out"), NET["a.weight"])
    shutil.copy(folder / "pytorch_model_fsdp.bin", folder / "pytorch_model_fsdp_1.bin")
    fails(2, "convert", folder, tmp_path / "no", "--to", "hf", "--no-assets", naming=("several models",))


@pytest.mark.parametrize("size", ["5GB", "20B"])
def test_diffusers_keep_their_names_and_their_config(size: str, tmp_path: Path) -> None:
    source, name = tmp_path / "unet", "diffusion_pytorch_model"
    source.mkdir()
    save_file({**NET, "b": torch.ones(4)}, source / f"{name}.safetensors")
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.36.0", "sample_size": 8}
    (source / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    result = succeeds("convert", source, out, "--to", "hf", "--max-shard-size", size)
    assert json.loads((out / "config.json").read_text()) == config and "tokenizer" not in result.err
    if size == "5GB":
        assert load_file(out / f"{name}.safetensors").keys() == {"a.weight", "b"}
    else:
        assert (out / f"{name}.safetensors.index.json").is_file()
        assert (out / f"{name}-00001-of-00002.safetensors").is_file()
    succeeds("verify-roundtrip", source, out)


def test_the_save_a_run_ends_with_is_its_newest(tmp_path: Path) -> None:
    """litgpt ends a run with ``final``, beside the saves on the way."""
    for name, held in (("step-00000100", NET), ("final", EMA)):
        (tmp_path / "run" / name).mkdir(parents=True)
        torch.save({"model": held}, tmp_path / "run" / name / "lit_model.pth")
    flags = ("--to", "hf", "--no-assets")
    succeeds("convert", tmp_path / "run", tmp_path / "out", *flags)
    assert torch.equal(written(tmp_path / "out"), EMA["a.weight"])
    succeeds("convert", tmp_path / "run", tmp_path / "out-100", *flags, "--step", "100")
    assert torch.equal(written(tmp_path / "out-100"), NET["a.weight"])
    listed = json.loads(succeeds("ls", tmp_path / "run", "--json").out)
    assert [save["name"] for save in listed["steps"]] == ["step-00000100", "final"]
