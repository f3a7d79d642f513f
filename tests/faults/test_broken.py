"""A checkpoint that is incomplete, cut off, mixed up or misnamed is refused by name, with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.torchfile import open_torch
from running import DEMO, assert_equal, case_run, ckptconv, fails, final_names, loaded, succeeds

STAGE_0, STAGE_2, STAGE_3 = "llama_z0_bf16_ws2", "llama_z2_bf16_ws2_clientstate", "llama_z3_fp32_ws2"
TENSOR_PARALLEL = "llama_tp2_z1_bf16_ws4"
PIPELINE = "pipe_z1_fp16_ws4_pp2dp2_tied"
MODEL = "mp_rank_00_model_states.pt"
OPTIMIZER = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stage 2 run of two ranks that may be spoilt."""
    return case_run(STAGE_2, tmp_path / "run")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize("file", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9, 0.999], ids=lambda k: f"{k:.1%}")
def test_a_file_cut_off(run: Path, out: Path, file: str, keep: float) -> None:
    path = run / "global_step2" / file
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    fails(1, "deepspeed-to-hf", run, out, naming=(file,), out=out)


@pytest.mark.parametrize("keep", [0.1, 0.6, 0.98])
def test_a_plain_file_cut_off(tmp_path: Path, out: Path, keep: float) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.arange(5000.0)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    fails(1, "convert", path, out, "--to", "hf", "--no-assets", naming=("model.pt",), out=out)


def test_a_file_of_zeros(run: Path, out: Path) -> None:
    """What a file system leaves of a file that was not synced before the machine went down."""
    path = run / "global_step2" / OPTIMIZER
    path.write_bytes(bytes(path.stat().st_size))
    fails(1, "deepspeed-to-hf", run, out, naming=(OPTIMIZER,), out=out)


def test_the_optimizer_file_of_one_rank_is_missing(run: Path, out: Path) -> None:
    (run / "global_step2" / OPTIMIZER).unlink()
    fails(4, "deepspeed-to-hf", run, out, naming=("rank 1", "*_optim_states.pt", "1 of 2"), out=out)


def test_the_optimizer_file_of_the_first_rank_is_missing(run: Path, out: Path) -> None:
    (run / "global_step2" / OPTIMIZER.replace("rank_1", "rank_0", 1)).unlink()
    fails(4, "deepspeed-to-hf", run, out, naming=("rank 0", "*_optim_states.pt"), out=out)


def test_all_optimizer_files_are_missing(run: Path, out: Path) -> None:
    for path in (run / "global_step2").glob("*_optim_states.pt"):
        path.unlink()
    fails(4, "deepspeed-to-hf", run, out, naming=("*_optim_states.pt", "--weights model"), out=out)
    succeeds("deepspeed-to-hf", run, out, "--weights", "model", "--quiet")


def test_the_model_states_are_missing(run: Path, out: Path) -> None:
    (run / "global_step2" / MODEL).unlink()
    fails(4, "deepspeed-to-hf", run, out, naming=("model states",), out=out)


@pytest.mark.parametrize("kind", ["model_states", "optim_states"])
def test_a_rank_of_stage_3_is_missing(tmp_path: Path, out: Path, kind: str) -> None:
    run = case_run(STAGE_3, tmp_path / "run")
    (path,) = (run / "global_step2").glob(f"*zero_pp_rank_1_*{kind}.pt")
    path.unlink()
    fails(4, "deepspeed-to-hf", run, out, naming=("rank 1",), out=out)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_tensor_parallel_rank_is_missing(tmp_path: Path, out: Path, rank: int) -> None:
    run = case_run(TENSOR_PARALLEL, tmp_path / "run")
    for path in (run / "global_step2").glob(f"*mp_rank_{rank:02d}_*"):
        path.unlink()
    fails(4, "deepspeed-to-hf", run, out, "--no-assets", out=out)


def test_a_pipeline_layer_is_missing(tmp_path: Path, out: Path) -> None:
    """A layer without parameters has no file, so a gap proves nothing; a parameter without its layer does."""
    run = case_run(PIPELINE, tmp_path / "run")
    (run / "global_step2" / "layer_01-model_states.pt").unlink()
    result = ckptconv("deepspeed-to-hf", run, out, "--no-assets", "--weights", "model")
    assert result.code == 4, result.out + result.err
    assert final_names(out) == []


def _patch(tensor: FileTensor, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a small float32 tensor in its file."""
    assert tensor.dtype.name == "float32"
    with open(tensor.path, "r+b") as file:
        file.seek(tensor.offset)
        value = torch.frombuffer(bytearray(file.read(tensor.nbytes)), dtype=torch.float32)
        file.seek(tensor.offset)
        file.write(change(value).numpy().tobytes())


def _entry(path: Path, *keys: Any) -> Any:
    value: Any = open_torch(path).root
    for key in keys:
        value = value[key]
    return value


def test_an_optimizer_file_of_another_step(run: Path, out: Path) -> None:
    path = run / "global_step2" / OPTIMIZER
    step = _entry(path, "optimizer_state_dict", "base_optimizer_state", "state", 0, "step")
    _patch(step, lambda t: t + 100)
    fails(4, "deepspeed-to-hf", run, out, naming=(OPTIMIZER, "step 102", "step 2"), out=out)


def test_stage_3_optimizer_file_of_another_step(tmp_path: Path, out: Path) -> None:
    run = case_run(STAGE_3, tmp_path / "run")
    (path,) = (run / "global_step2").glob("*zero_pp_rank_1_*optim_states.pt")
    state = _entry(path, "optimizer_state_dict")
    inner = state.get("optimizer_state_dict", state.get("base_optimizer_state"))
    _patch(next(e["step"] for e in inner["state"].values() if "step" in e), lambda t: t + 1)
    fails(4, "deepspeed-to-hf", run, out, naming=(path.name, "step 3"), out=out)


def test_model_states_of_another_save(run: Path, out: Path) -> None:
    """Names, shapes and steps agree; only the values tell, which masters round to."""
    path = run / "global_step2" / MODEL
    states = torch.load(path, weights_only=False)
    for tensor in states["module"].values():
        tensor.mul_(1.5)
    torch.save(states, path)
    fails(4, "deepspeed-to-hf", run, out, naming=("] does not round to", "byte", "--weights model"), out=out)
    succeeds("deepspeed-to-hf", run, out, "--weights", "model")


def test_an_optimizer_file_of_another_run(run: Path, out: Path) -> None:
    """Fewer elements than the parameters need: the file of a smaller model."""
    other = case_run("qwen2tied_z2_bf16_ws2", run.parent / "other")
    for rank in (0, 1):
        name = OPTIMIZER.replace("rank_1", f"rank_{rank}", 1)
        shutil.copyfile(other / "global_step2" / name, run / "global_step2" / name)
    fails(4, "deepspeed-to-hf", run, out, naming=("parameters",), out=out)


def test_latest_names_a_tag_that_is_not_there(run: Path, out: Path) -> None:
    (run / "latest").write_text("global_step900")
    fails(
        1, "deepspeed-to-hf", run, out, naming=("latest", "global_step900", "--tag", "global_step2"), out=out
    )


def test_latest_is_no_text(run: Path, out: Path) -> None:
    (run / "latest").write_bytes(b"\xff\x00\xfe" * 5000)
    fails(1, "deepspeed-to-hf", run, out, naming=("latest", "global_step2"), out=out)


def test_latest_names_an_empty_tag(run: Path, out: Path) -> None:
    """What a save that was killed leaves."""
    (run / "global_step3").mkdir()
    (run / "latest").write_text("global_step3")
    fails(4, "deepspeed-to-hf", run, out, naming=("global_step3", "global_step2"), out=out)


def test_without_latest_the_only_tag_is_taken(run: Path, out: Path) -> None:
    (run / "latest").unlink()
    assert "global_step2" in succeeds("deepspeed-to-hf", run, out).err


def test_without_latest_several_tags_need_a_choice(run: Path, out: Path) -> None:
    (run / "latest").unlink()
    shutil.copytree(run / "global_step2", run / "global_step10")
    message = fails(
        2, "deepspeed-to-hf", run, out, naming=("--tag", "global_step2", "global_step10"), out=out
    )
    assert "latest" in message
    succeeds("deepspeed-to-hf", run, out, "--tag", "global_step10")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("vocab_size", 999, "embed_tokens"),
        ("num_hidden_layers", 3, "layers"),
        ("num_hidden_layers", 1, "layers"),
        ("hidden_size", 64, "64"),
        ("intermediate_size", 7, "mlp"),
        ("num_key_value_heads", 4, "k_proj"),
        ("vocab_size", None, "vocab"),
    ],
)
def test_a_config_that_contradicts_the_weights(
    out: Path, tmp_path: Path, key: str, value: Any, named: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(DEMO, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, key: value}))
    fails(4, "deepspeed-to-hf", run, out, naming=("config.json", named, "--config"), out=out)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"null", b"[" * 100_000], ids=lambda c: repr(c[:6])
)
def test_a_config_that_is_not_json(run: Path, out: Path, content: bytes) -> None:
    (run / "config.json").write_bytes(content)
    fails(1, "deepspeed-to-hf", run, out, naming=("config.json", "JSON"), out=out)


def test_no_config_anywhere(run: Path, out: Path) -> None:
    (run / "config.json").unlink()
    fails(4, "deepspeed-to-hf", run, out, naming=("config.json", "--config", "--no-assets"), out=out)
    succeeds("deepspeed-to-hf", run, out, "--no-assets", "--quiet")
    assert final_names(out) == ["model.safetensors"]


def test_a_config_folder_without_one(run: Path, out: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "empty").mkdir()
    fails(4, "deepspeed-to-hf", run, out, "--config", empty, naming=("config.json", "empty"), out=out)


def test_no_such_source(out: Path, tmp_path: Path) -> None:
    fails(1, "deepspeed-to-hf", tmp_path / "nothing", out, naming=("nothing",), out=out)


def test_a_folder_that_is_no_checkpoint(out: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    fails(1, "deepspeed-to-hf", tmp_path / "photos", out, naming=("photos", "cat.jpg"), out=out)


def test_a_hugging_face_shard_is_missing(out: Path, tmp_path: Path) -> None:
    succeeds("deepspeed-to-hf", DEMO, tmp_path / "model", "--max-shard-size", "100KB", "--quiet")
    shard = next((tmp_path / "model").glob("model-00002-*"))
    shard.unlink()
    fails(4, "convert", tmp_path / "model", out, "--to", "hf", naming=(shard.name,), out=out)


class TestReplicas:
    """Copies of a tensor are compared with what is written; one flipped bit is a mismatch."""

    @staticmethod
    def _flip(tensor: FileTensor, element: int) -> None:
        with open(tensor.path, "r+b") as file:
            file.seek(tensor.offset + element * tensor.dtype.itemsize)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))

    def test_stage_0_compares_the_masters_with_the_whole_module(self, tmp_path: Path, out: Path) -> None:
        run = case_run(STAGE_0, tmp_path / "run")
        tensor = _entry(run / "global_step2" / MODEL, "module", "model.embed_tokens.weight")
        rows, columns = tensor.shape
        assert tensor.is_contiguous and tensor.numel > 1100
        self._flip(tensor, (rows // 2) * columns + 5)  # in the middle, which no sample looks at
        fails(
            3, "deepspeed-to-hf", run, out, "--no-assets",
            naming=("model.embed_tokens.weight", f"[{rows // 2}, 5]", MODEL, "at byte"), out=out,
        )  # fmt: skip

    @pytest.mark.parametrize("sampled", [True, False])
    def test_tied_pipeline_layers_are_compared(self, tmp_path: Path, out: Path, sampled: bool) -> None:
        run = case_run(PIPELINE, tmp_path / "run")
        succeeds("deepspeed-to-hf", run, tmp_path / "whole", "--no-assets", "--quiet")
        (alias,) = (n for n in loaded(tmp_path / "whole") if n.startswith("tied_modules."))
        suffix = alias.split(".", 2)[2]
        holders = [p for p in sorted((run / "global_step2").glob("layer_*")) if suffix in open_torch(p).root]
        tensor = _entry(holders[-1], suffix)
        self._flip(tensor, 3 if sampled else tensor.numel // 2)
        fails(3, "deepspeed-to-hf", run, out, "--no-assets", naming=(alias, holders[-1].name), out=out)

    def test_nothing_of_a_mismatch_is_taken_for_whole(self, tmp_path: Path, out: Path) -> None:
        run = case_run(STAGE_0, tmp_path / "run")
        tensor = _entry(run / "global_step2" / MODEL, "module", "model.embed_tokens.weight")
        self._flip(tensor, tensor.numel // 2)
        fails(3, "deepspeed-to-hf", run, out, "--no-assets", "--max-shard-size", "8KB", out=out)
        self._flip(tensor, tensor.numel // 2)
        succeeds("deepspeed-to-hf", run, tmp_path / "right", "--no-assets", "--quiet")
        succeeds("deepspeed-to-hf", run, out, "--no-assets", "--resume", "--quiet")
        assert_equal(loaded(out), loaded(tmp_path / "right"))
