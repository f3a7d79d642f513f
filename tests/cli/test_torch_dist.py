"""Convert torch_dist and DCP checkpoints through the command line, in both directions."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from ckptconv.containers.torch.torchfile import open_torch
from running import assert_equal, fails, loaded, succeeds

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = ("deepseek_v3", "llama_bf16", "llama_core019", "llama_distopt", "llama_uneven", "mixtral", "qwen2")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    folder = tmp_path_factory.mktemp("torch_dist")
    with tarfile.open(fixtures / "megatron_dist" / "cases.tar.xz") as tar:
        tar.extractall(folder)
    return folder


def by_torch(folder: Path) -> dict[str, torch.Tensor]:
    """Load all model tensors of a DCP folder with torch."""
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in found.items()
        if hasattr(meta, "size") and not name.startswith("optimizer")
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def without_padding(state: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    padded = ("embedding.word_embeddings.weight", "output_layer.weight")
    return {name: t[:rows].clone() if name in padded else t for name, t in state.items()}


def vocabulary(case: Path) -> int:
    return int(json.loads((case / "config.json").read_text())["vocab_size"])


def objects(folder: Path) -> set[str]:
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name for name, meta in found.items() if not hasattr(meta, "size")}


def test_true_values(archive: Path, tmp_path: Path) -> None:
    succeeds("convert", archive / "llama_bf16", tmp_path / "hf", "--to", "hf")
    truth = json.loads((archive / "llama_bf16" / "truth.json").read_text())
    found = loaded(tmp_path / "hf")
    sums = {
        n: hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for n, t in found.items()
    }
    assert sums == truth
    assert (tmp_path / "hf" / "config.json").is_file()


@pytest.mark.parametrize("case", CASES)
def test_to_hugging_face_and_back(archive: Path, tmp_path: Path, case: str) -> None:
    run, hf, back, again = archive / case, tmp_path / "hf", tmp_path / "back", tmp_path / "again"
    succeeds("convert", run, hf, "--to", "hf")
    succeeds("convert", hf, back, "--to", "torch_dist", "--max-shard-size", "40KB")
    iteration = back / "iter_0000001"
    assert len(list(iteration.glob("__0_*.distcp"))) > 3
    assert (back / "latest_checkpointed_iteration.txt").read_text() == "1"
    rows = vocabulary(run)
    found, expected = by_torch(iteration), by_torch(run / "iter_0000005")
    if case == "llama_bf16":
        assert found["decoder.layers.mlp.linear_fc1.weight"].dtype == torch.bfloat16
    assert_equal(without_padding(found, rows), without_padding(expected, rows))
    assert len(found["embedding.word_embeddings.weight"]) % 128 == 0
    states = {n for n in objects(run / "iter_0000005") if "_extra_state" in n}
    assert states <= objects(iteration)
    succeeds("convert", back, again, "--to", "hf", "--config", hf)
    assert_equal(loaded(again), loaded(hf))


@pytest.mark.parametrize("case", ["deepseek_v3", "llama_bf16", "llama_core019"])
def test_like_a_run(archive: Path, tmp_path: Path, case: str) -> None:
    run, hf, back = archive / case, tmp_path / "hf", tmp_path / "back"
    succeeds("convert", run, hf, "--to", "hf", "--dtype", "float32")
    succeeds("convert", hf, back, "--to", "torch_dist", "--like", run, "--max-shard-size", "60KB")
    rows = vocabulary(run)
    found, expected = by_torch(back / "iter_0000005"), by_torch(run / "iter_0000005")
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    assert_equal(without_padding(found, rows), without_padding(expected, rows))
    common = open_torch(back / "iter_0000005" / "common.pt").root
    assert isinstance(common, dict) and common["iteration"] == 5
    assert common["args"].get("hidden_size") == found["decoder.final_layernorm.weight"].numel()


def test_arguments_and_padding(archive: Path, tmp_path: Path) -> None:
    succeeds("convert", archive / "mixtral", tmp_path / "hf", "--to", "hf")
    sizes = ("--tp", 4, "--pp", 2, "--ep", 2)
    succeeds("convert", tmp_path / "hf", tmp_path / "run", "--to", "torch_dist", *sizes)
    common = open_torch(tmp_path / "run" / "iter_0000001" / "common.pt").root
    assert isinstance(common, dict)
    args = common["args"]
    assert [args.get(f"{k}_model_parallel_size") for k in ("tensor", "pipeline", "expert")] == [4, 2, 2]
    assert args.get("ckpt_format") == "torch_dist" and args.get("moe_layer_freq") == 1
    rows = len(by_torch(tmp_path / "run" / "iter_0000001")["embedding.word_embeddings.weight"])
    assert rows == args.get("padded_vocab_size") == 512
    marker = json.loads((tmp_path / "run" / "iter_0000001" / "metadata.json").read_text())
    assert marker["sharded_backend"] == "torch_dist" and marker["common_backend"] == "torch"


def test_norms_of_the_local_spec(archive: Path, tmp_path: Path) -> None:
    succeeds("convert", archive / "mixtral", tmp_path / "hf", "--to", "hf")
    succeeds("convert", tmp_path / "hf", tmp_path / "run", "--to", "torch_dist", "--dialect", "core-local")
    found = by_torch(tmp_path / "run" / "iter_0000001")
    assert "decoder.layers.mlp.linear_fc1.layer_norm_weight" in found
    assert "decoder.layers.pre_mlp_layernorm.weight" not in found
    succeeds("convert", tmp_path / "run", tmp_path / "again", "--to", "hf")
    assert_equal(loaded(tmp_path / "again"), loaded(tmp_path / "hf"))


@pytest.mark.parametrize(
    "flags", [("--experts", "grouped"), ("--noop-layers", "1"), ("--dialect", "mindspeed")]
)
def test_flags_that_cut(archive: Path, tmp_path: Path, flags: tuple[str, str]) -> None:
    succeeds("convert", archive / "qwen2", tmp_path / "hf", "--to", "hf")
    out = tmp_path / "run"
    fails(2, "convert", tmp_path / "hf", out, "--to", "torch_dist", *flags, naming=("torch_dist",), out=out)


def test_plain_dcp(archive: Path, tmp_path: Path) -> None:
    hf, out = tmp_path / "hf", tmp_path / "dcp"
    succeeds("convert", archive / "llama_bf16", hf, "--to", "hf")
    succeeds("convert", hf, out, "--to", "dcp", "--max-shard-size", "50KB")
    expected = loaded(hf)
    state = {name: torch.empty_like(t) for name, t in expected.items()}
    dcp.load(state, checkpoint_id=out, no_dist=True)
    assert_equal(state, expected)
    assert len(list(out.glob("*.distcp"))) > 2 and (out / "config.json").is_file()
    succeeds("convert", out, tmp_path / "again", "--to", "hf")
    assert_equal(loaded(tmp_path / "again"), expected)


def test_a_missing_file(archive: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(archive / "qwen2", tmp_path / "run"))
    (run / "iter_0000005" / "__2_1.distcp").unlink()
    out = tmp_path / "hf"
    fails(4, "convert", run, out, "--to", "hf", naming=("__2_1.distcp is missing",), out=out)
