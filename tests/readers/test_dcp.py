"""Distributed checkpoints of FSDP and the like become the models they were saved from, bit for bit."""

from __future__ import annotations

import argparse
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.readers.dcp import READER
from ckptconv.readers.reader import Weighed
from ckptconv.readers.registry import open_checkpoint
from running import assert_equal, ckptconv, fails, loaded, succeeds

pytestmark = pytest.mark.filterwarnings("ignore")

MODEL = {
    "model.embed_tokens.weight": torch.arange(12.0).reshape(4, 3),
    "model.norm.weight": torch.ones(3),
    "lm_head.weight": torch.arange(12.0).reshape(4, 3) + 100,
}
MOMENTS = {
    "state": {n: {"exp_avg": torch.zeros_like(t), "step": torch.tensor(3.0)} for n, t in MODEL.items()}
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(fixtures / "dcp.tar.xz") as tar:
        tar.extractall(folder)
    return folder / "dcp"


def _save(folder: Path, state: dict[str, Any]) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def _open(path: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(path, options)


CASES = (
    "accelerate_qwen2_float32_ws2",
    "fsdp2_llama_bfloat16_ws3",
    "fsdp2_optim_llama_float32_ws2",
    "plain_qwen2_float32_ws2",
)


@pytest.mark.parametrize("case", CASES)
def test_to_hugging_face(archive: Path, tmp_path: Path, case: str) -> None:
    hf = archive / case / "hf"
    succeeds("convert", archive / case / "ckpt", tmp_path / "out", "--to", "hf", "--config", hf)
    assert_equal(loaded(tmp_path / "out"), load_file(hf / "model.safetensors"))
    assert (tmp_path / "out" / "config.json").is_file()


def test_what_is_left_out_is_said(archive: Path, tmp_path: Path) -> None:
    case = archive / "fsdp2_optim_llama_float32_ws2"
    found = _open(case / "ckpt")
    weights = sum(s.numel for s in found.tensors.values())
    assert found.left_out["optimizer states"] == 2 * 4 * weights + 4 * len(found.tensors)
    assert found.left_out["objects that are no tensors"] > 0
    said = succeeds(
        "convert", case / "ckpt", tmp_path / "out", "--to", "hf", "--config", case / "hf", "--dry-run"
    )
    assert "optimizer states" in said.out + said.err


@pytest.mark.parametrize("inside", ["", ".metadata", "__0_0.distcp"])
def test_a_file_inside(tmp_path: Path, inside: str) -> None:
    _save(tmp_path, MODEL)
    assert _open(tmp_path / inside).data == tmp_path


@pytest.mark.parametrize(
    "wrapped",
    [
        MODEL,
        {"model": MODEL, "optimizer": MOMENTS},
        {"app": {"model": MODEL, "optim": MOMENTS}},
        {"state_dict": MODEL, "optimizer_0": MOMENTS, "lr_schedulers": {"last": torch.tensor(1.0)}},
        {**MODEL, "optimizer": MOMENTS, "train_state": {"step": torch.tensor(4)}},
        {**MODEL, **{f"optimizer.state.{n}.exp_avg": t for n, t in MODEL.items()}},
        {f"state_dict.{n}": t for n, t in MODEL.items()},
        {"model": {f"model.{n}": t for n, t in MODEL.items()}},
        {"model": {f"module.{n}": t for n, t in MODEL.items()}},
        {"state_dict": {f"_fsdp_wrapped_module.{n}": t for n, t in MODEL.items()}},
    ],
)
def test_wrapped(tmp_path: Path, wrapped: dict[str, Any]) -> None:
    _save(tmp_path / "ckpt", wrapped)
    succeeds("convert", tmp_path / "ckpt", tmp_path / "out", "--to", "hf", "--no-assets")
    assert_equal(loaded(tmp_path / "out"), MODEL)


def test_the_models_own_prefix_is_kept(tmp_path: Path) -> None:
    """A tied model without a head has 'model.' before every name."""
    tied = {n: t for n, t in MODEL.items() if n != "lm_head.weight"}
    assert set(_open(_save(tmp_path / "bare", tied)).tensors) == set(tied)
    assert set(_open(_save(tmp_path / "wrapped", {"model": tied})).tensors) == set(tied)


def test_other_tensors_beside_the_model(tmp_path: Path) -> None:
    found = _open(_save(tmp_path, {"model": MODEL, "ema": MODEL, "rng_state": torch.zeros(16)}))
    assert set(found.tensors) == set(MODEL)
    assert [n.text for n in found.notes if n.level == "warning"] == [
        "left out: 3 tensors under 'ema', beside the model"
    ]
    assert found.left_out["'rng_state', beside the model"] == 64


def test_the_newest_of_a_run(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        scaled = {n: t * step for n, t in MODEL.items()}
        _save(tmp_path / f"checkpoint-{step}" / "pytorch_model_fsdp_0", {"model": scaled})
        _save(tmp_path / f"checkpoint-{step}" / "optimizer_0", {"optimizer": MOMENTS})
    (tmp_path / "checkpoint-10" / "config.json").write_text("{}")
    found = _open(tmp_path)
    assert (found.data.parent.name, found.iteration) == ("checkpoint-10", 10)
    assert found.root == tmp_path / "checkpoint-10"
    assert any("the newest of 3" in n.text for n in found.notes)
    (tmp_path / "latest").write_text("checkpoint-9")
    assert READER.open(tmp_path, Weighed()).data.parent.name == "checkpoint-9"
    save_file(MODEL, tmp_path / "model.safetensors")
    assert not READER.recognise(tmp_path)


def test_the_newest_of_lightning(tmp_path: Path) -> None:
    for name in ("epoch=0-step=9.ckpt", "epoch=1-step=10.ckpt"):
        _save(tmp_path / name, {"state_dict": MODEL})
    found = _open(tmp_path)
    assert (found.data.name, found.iteration) == ("epoch=1-step=10.ckpt", 10)


def test_several_models(tmp_path: Path) -> None:
    for i in range(2):
        _save(tmp_path / f"pytorch_model_fsdp_{i}", {"model": MODEL})
    with pytest.raises(UsageError, match="2 models") as caught:
        _open(tmp_path)
    assert "pytorch_model_fsdp_1" in str(caught.value)
    assert set(_open(tmp_path / "pytorch_model_fsdp_1").tensors) == set(MODEL)


def test_only_optimizer_states(tmp_path: Path) -> None:
    _save(tmp_path / "optimizer_0", {"optimizer": MOMENTS})
    with pytest.raises(PlanError, match=r"no weights.*optimizer states"):
        _open(tmp_path / "optimizer_0")


def test_masters(tmp_path: Path) -> None:
    assert any(
        "FSDP keeps no masters" in n.text for n in _open(_save(tmp_path / "a", MODEL), weights="master").notes
    )
    half = _save(tmp_path / "b", {n: t.bfloat16() for n, t in MODEL.items()})
    with pytest.raises(UsageError, match=r"no fp32 masters.*bfloat16"):
        _open(half, weights="master")


def test_megatron_is_not_taken_for_it(tmp_path: Path) -> None:
    _save(tmp_path / "dist", MODEL)
    (tmp_path / "dist" / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    assert not READER.recognise(tmp_path / "dist")
    _save(tmp_path / "dcp", {"model": MODEL, "args": argparse.Namespace(tp=2), "checkpoint_version": 3.0})
    with pytest.raises(FormatError, match="Megatron"):
        READER.open(tmp_path / "dcp", Weighed())


def test_a_missing_file(archive: Path, tmp_path: Path) -> None:
    shutil.copytree(archive / "fsdp2_llama_bfloat16_ws3" / "ckpt", tmp_path / "ckpt")
    (tmp_path / "ckpt" / "__1_0.distcp").unlink()
    fails(
        4, "convert", tmp_path / "ckpt", tmp_path / "out", "--to", "hf", "--no-assets",
        naming=("__1_0.distcp is missing", "model."), out=tmp_path / "out",
    )  # fmt: skip


@pytest.mark.parametrize("case", ["fsdp1", "mesh"])
def test_what_four_ranks_saved(fixtures: Path, tmp_path: Path, case: str) -> None:
    folder = fixtures / "dcp_meshes" / case
    succeeds("convert", folder / "dcp", tmp_path / "out", "--to", "hf", "--no-assets")
    assert_equal(loaded(tmp_path / "out"), load_file(folder / "expected.safetensors"))


def test_inspect_says_what_it_is(fixtures: Path) -> None:
    said = ckptconv("inspect", fixtures / "dcp_meshes" / "mesh" / "dcp", "--json")
    assert said.code == 0 and '"producer": "dcp"' in said.out and '"hybrid"' in said.out
