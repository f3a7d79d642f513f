"""Read Megatron's torch_dist format: what the real megatron-core saved, and forms of it made here."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

import ckptconv
from ckptconv.errors import CkptconvError, FormatError, PlanError

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = ("deepseek_v3", "llama_bf16", "llama_core019", "llama_distopt", "llama_uneven", "mixtral", "qwen2")
KEY = "decoder.layers.mlp.linear_fc2.weight"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    folder = tmp_path_factory.mktemp("torch_dist")
    with tarfile.open(fixtures / "megatron_dist" / "cases.tar.xz") as tar:
        tar.extractall(folder)
    return folder


def iteration(folder: Path) -> Path:
    return next(folder.glob("iter_*"))


def made(folder: Path, tensors: dict[str, torch.Tensor], *, common: bool = True, **args: Any) -> Path:
    """Save tensors as torch does, with the marker and the common state of Megatron beside them."""
    inner = folder / "iter_0000007"
    dcp.save(dict(tensors), checkpoint_id=inner, no_dist=True)
    (inner / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    if common:
        state = {"args": argparse.Namespace(**args), "iteration": 7, "checkpoint_version": 3.0}
        torch.save(state, inner / "common.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    return folder


@pytest.mark.parametrize("case", CASES[:1] + CASES[2:])
def test_tensors_of_single_layers_and_experts(archive: Path, case: str) -> None:
    model = ckptconv.open(archive / case)
    assert model.checkpoint.strange == ()
    assert model.checkpoint.iteration == 5
    assert model.checkpoint.arguments["num_layers"] == {"mixtral": 2, "deepseek_v3": 3}.get(case, 4)
    for name, info in model.items():
        key, first = name, 0
        count = int(np.prod(info.shape))
        parts = name.split(".")
        stacked = case != "deepseek_v3" and name.startswith("decoder.layers.")
        expert = parts[-1][6:] if ".experts.linear" in name else ""
        if expert:
            first += int(expert) * count
            key = key.replace(".experts.", ".experts.experts.").removesuffix(expert)
        if stacked:
            first += int(parts[2]) * count * (4 if expert else 1)
            key = key.replace(f"decoder.layers.{parts[2]}.", "decoder.layers.")
        start = zlib.crc32(key.encode()) % 1000 + first
        expected = np.arange(start, start + count).astype(np.float32).reshape(info.shape)
        assert np.array_equal(model.read(name), expected), name


@pytest.mark.parametrize("inside", ["", "iter_0000005", "iter_0000005/.metadata", "iter_0000005/common.pt"])
def test_any_path_inside(archive: Path, inside: str) -> None:
    found = ckptconv.open(archive / "qwen2" / inside).checkpoint
    assert found.data == archive / "qwen2" / "iter_0000005" and found.root == archive / "qwen2"
    assert found.format == "torch_dist format"


def test_what_is_left_out(archive: Path) -> None:
    left = ckptconv.open(archive / "llama_distopt").checkpoint.left_out
    assert left["optimizer states"] > 2 * 3 * 4 * 100_000
    assert left["random states"] and left["extra states of modules"]


def test_masters_without_names_are_refused(archive: Path, tmp_path: Path) -> None:
    note = ckptconv.open(archive / "llama_distopt", weights="master").checkpoint.notes
    assert any("trained in fp32" in n.text for n in note)
    with pytest.raises(PlanError, match="no fp32 masters"):
        ckptconv.open(archive / "llama_bf16", weights="master")
    flat = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(a).bucket_idx_0.param"
    tensors = {"decoder.final_layernorm.weight": torch.ones(4, dtype=torch.bfloat16), flat: torch.ones(8)}
    with pytest.raises(PlanError, match="flat buffers"):
        ckptconv.open(made(tmp_path, tensors), weights="master")


def test_named_masters(tmp_path: Path) -> None:
    weight, norm = torch.randn(2, 3, 4), torch.randn(2, 4)
    tensors = {
        "decoder.layers.mlp.linear_fc2.weight": weight.bfloat16(),
        "decoder.layers.mlp.router.expert_bias": norm,
        "optimizer.state.fp32_param.decoder.layers.mlp.linear_fc2.weight": weight,
        "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc2.weight": weight,
    }
    run = made(tmp_path, tensors, num_layers=2)
    master = ckptconv.open(run, weights="master")
    assert np.array_equal(master.read("decoder.layers.1.mlp.linear_fc2.weight"), weight[1].numpy())
    assert np.array_equal(master.read("decoder.layers.0.mlp.router.expert_bias"), norm[0].numpy())
    assert ckptconv.open(run)["decoder.layers.1.mlp.linear_fc2.weight"].dtype.name == "bfloat16"
    assert ckptconv.open(run).checkpoint.left_out["fp32 masters"] == weight.numel() * 4


def test_experts_and_halves_of_their_own(tmp_path: Path) -> None:
    gate, up, down = torch.randn(5, 4), torch.randn(5, 4), torch.randn(4, 5)
    stem = "decoder.layers.0.mlp.experts.experts.1."
    tensors = {
        f"{stem}linear_fc1.weight_w": gate,
        f"{stem}linear_fc1.weight_v": up,
        f"{stem}linear_fc2.weight": down,
        "decoder.layers.1.mlp.linear_fc1.weight_v": up,
        "decoder.layers.1.mlp.linear_fc1.weight_w": gate,
    }
    model = ckptconv.open(made(tmp_path, tensors, num_layers=2))
    both = torch.cat([gate, up]).numpy()
    assert np.array_equal(model.read("decoder.layers.0.mlp.experts.linear_fc1.weight1"), both)
    assert np.array_equal(model.read("decoder.layers.0.mlp.experts.linear_fc2.weight1"), down.numpy())
    assert np.array_equal(model.read("decoder.layers.1.mlp.linear_fc1.weight"), both)


def test_half_alone(tmp_path: Path) -> None:
    run = made(tmp_path, {"decoder.layers.0.mlp.linear_fc1.weight_w": torch.ones(2, 2)}, num_layers=1)
    with pytest.raises(PlanError, match="halves that do not fit"):
        ckptconv.open(run)


def test_megatron_fsdp(tmp_path: Path) -> None:
    gate, up, norm = torch.randn(5, 4), torch.randn(5, 4), torch.randn(4)
    args = argparse.Namespace(num_layers=1, use_megatron_fsdp=True, tensor_model_parallel_size=2)
    state = {
        "model": {
            "module.decoder.layers.0.mlp.linear_fc1.weight_w": gate,
            "module.decoder.layers.0.mlp.linear_fc1.weight_v": up,
            "module.decoder.final_layernorm.weight": norm,
        },
        "optimizer": {"state": {"module.decoder.final_layernorm.weight": {"exp_avg": norm}}},
        "args": args,
        "iteration": 9,
        "checkpoint_version": 3.0,
    }
    dcp.save(state, checkpoint_id=tmp_path / "a", no_dist=True)
    model = ckptconv.open(tmp_path / "a")
    assert sorted(model) == ["decoder.final_layernorm.weight", "decoder.layers.0.mlp.linear_fc1.weight"]
    assert np.array_equal(model.read("decoder.layers.0.mlp.linear_fc1.weight"), torch.cat([gate, up]).numpy())
    assert model.checkpoint.iteration == 9
    dcp.save(
        {**state, "args": argparse.Namespace(tensor_model_parallel_size=2)},
        checkpoint_id=tmp_path / "b",
        no_dist=True,
    )
    with pytest.raises(PlanError, match="overwrite each other"):
        ckptconv.open(tmp_path / "b")


def test_a_save_of_other_layers(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"holds 2 layers .* says 3"):
        ckptconv.open(
            made(tmp_path, {"decoder.layers.mlp.linear_fc2.weight": torch.ones(2, 3, 4)}, num_layers=3)
        )


def test_no_common_state(tmp_path: Path) -> None:
    run = made(tmp_path, {"decoder.final_layernorm.weight": torch.ones(2)}, common=False)
    with pytest.raises(FormatError, match=r"no common\.pt"):
        ckptconv.open(run)


def test_zarr_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    with pytest.raises(FormatError, match="zarr backend"):
        ckptconv.open(tmp_path)


def test_plain_checkpoints_are_left_to_the_other_reader(tmp_path: Path) -> None:
    dcp.save({"model": {"w": torch.ones(2)}}, checkpoint_id=tmp_path, no_dist=True)
    assert ckptconv.open(tmp_path).checkpoint.producer == "dcp"


# Damage


def changed(folder: Path, **how: Any) -> CkptconvError:
    """Change the metadata of a torch_dist case, and return the error of opening it."""
    path = iteration(folder) / ".metadata"
    meta = pickle.loads(path.read_bytes())
    how["change"](meta)
    path.write_bytes(pickle.dumps(meta))
    with pytest.raises(CkptconvError) as caught:
        ckptconv.open(folder)
    assert caught.value.where is not None
    return caught.value


@pytest.fixture
def spoilt(archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archive / "llama_bf16", tmp_path / "run"))


def test_a_missing_file(spoilt: Path) -> None:
    (iteration(spoilt) / "__1_0.distcp").unlink()
    with pytest.raises(PlanError, match=r"__1_0\.distcp is missing"):
        ckptconv.open(spoilt)


def test_a_truncated_record(spoilt: Path) -> None:
    path = iteration(spoilt) / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FormatError, match="its record is bytes"):
        ckptconv.open(spoilt)


def test_metadata_past_the_end(spoilt: Path) -> None:
    def change(meta: Any) -> None:
        info = next(v for k, v in meta.storage_data.items() if k.fqn == KEY)
        info.offset += 1 << 30

    assert isinstance(error := changed(spoilt, change=change), FormatError)
    assert KEY in error.message and "the file has" in error.message


def test_a_gap_and_an_overlap(archive: Path, tmp_path: Path) -> None:
    def drop(meta: Any) -> None:
        meta.state_dict_metadata[KEY].chunks.pop()

    def double(meta: Any) -> None:
        chunks = meta.state_dict_metadata[KEY].chunks
        chunks.append(chunks[0])

    def move(meta: Any) -> None:
        chunks = meta.state_dict_metadata[KEY].chunks
        chunks[1] = chunks[0]

    for i, (how, text) in enumerate(((drop, "leave a gap"), (double, "overlap"), (move, KEY))):
        run = shutil.copytree(archive / "llama_bf16", tmp_path / str(i))
        error = changed(Path(run), change=how)
        assert isinstance(error, PlanError) and text in error.message and KEY in error.message
