"""Files of FSDP ranks, as verl leaves them, become the whole model, or are refused by name."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ckptconv.errors import CkptconvError, FormatError, PlanError, UsageError
from ckptconv.readers.registry import open_checkpoint
from npu import save_as_npu
from running import assert_equal, fails, loaded, succeeds

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(fixtures / "dcp.tar.xz") as tar:
        tar.extractall(folder)
    return folder / "dcp" / "verl_llama_bfloat16_ws2"


@pytest.fixture
def ranks(fixtures: Path, tmp_path: Path) -> Path:
    shutil.copytree(fixtures / "dcp_meshes" / "mesh" / "ranks", tmp_path / "ranks")
    return tmp_path / "ranks"


def _file(rank: int, world: int = 4) -> str:
    return f"model_world_size_{world}_rank_{rank}.pt"


def _refused(path: Path, kind: type[CkptconvError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(path)
    assert type(caught.value) is kind


@pytest.mark.parametrize("inside", ["", _file(1, 2)])
def test_to_hugging_face(case: Path, tmp_path: Path, inside: str) -> None:
    hf = case / "hf"
    succeeds("convert", case / "ckpt" / inside, tmp_path / "out", "--to", "hf", "--config", hf)
    assert_equal(loaded(tmp_path / "out"), load_file(hf / "model.safetensors"))


def test_a_run(case: Path, tmp_path: Path) -> None:
    """verl: ``global_step_N/actor``, config and tokenizer in ``huggingface``, the step in a tracker file."""
    for step in (9, 10):
        actor = tmp_path / f"global_step_{step}" / "actor"
        shutil.copytree(case / "ckpt", actor)
        shutil.copytree(case / "hf", actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
        (actor / "optim_world_size_2_rank_0.pt").write_bytes(b"x" * 100)
    found = open_checkpoint(tmp_path)
    assert (found.iteration, found.producer, found.left_out["optimizer states"]) == (10, "verl", 100)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("9")
    assert open_checkpoint(tmp_path).iteration == 9
    succeeds("convert", tmp_path, tmp_path / "out", "--to", "hf")
    assert_equal(loaded(tmp_path / "out"), load_file(case / "hf" / "model.safetensors"))
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("name", ["fsdp1", "mesh"])
def test_meshes(fixtures: Path, tmp_path: Path, name: str) -> None:
    folder = fixtures / "dcp_meshes" / name
    succeeds("convert", folder / "ranks", tmp_path / "out", "--to", "hf", "--no-assets")
    assert_equal(loaded(tmp_path / "out"), load_file(folder / "expected.safetensors"))


def test_replicas_are_compared(ranks: Path, tmp_path: Path) -> None:
    found = open_checkpoint(ranks)
    copied = {p.right.tensor for p in found.relation.pairs if p.left_copy}
    assert copied == {"hybrid", "scalar"}
    with (ranks / _file(3)).open("r+b") as file:
        data = file.read()
        expected = load_file(Path(__file__).parents[2] / "fixtures/dcp_meshes/mesh/expected.safetensors")
        at = data.index(expected["hybrid"][5:].numpy().tobytes())
        file.seek(at)
        file.write(b"\1\2\3\4")
    fails(
        3,
        "convert",
        ranks,
        tmp_path / "out",
        "--to",
        "hf",
        "--no-assets",
        naming=("hybrid",),
        out=tmp_path / "out",
    )


def test_a_missing_rank(ranks: Path, tmp_path: Path) -> None:
    (ranks / _file(2)).unlink()
    fails(
        4, "convert", ranks, tmp_path / "out", "--to", "hf", "--no-assets",
        naming=("rank 2 is missing of 4 ranks",), out=tmp_path / "out",
    )  # fmt: skip


def test_a_world_size_that_lies(ranks: Path) -> None:
    """What is missing is not counted one by one."""
    for path in ranks.iterdir():
        path.rename(ranks / path.name.replace("size_4_", f"size_{10**18}_"))
    _refused(ranks, PlanError, f"rank 4 and {10**18 - 5} more are missing of {10**18} ranks")


def test_ranks_of_another_world_size(ranks: Path, case: Path) -> None:
    for file in (case / "ckpt").iterdir():
        shutil.copy(file, ranks)
    _refused(ranks, UsageError, "2 world sizes are here: 2, 4")
    assert "tiles" in open_checkpoint(ranks / _file(0)).tensors
    assert "lm_head.weight" in open_checkpoint(ranks / _file(0, 2)).tensors


def test_files_changed_places(ranks: Path) -> None:
    (ranks / _file(0)).rename(ranks / "x")
    (ranks / _file(1)).rename(ranks / _file(0))
    (ranks / "x").rename(ranks / _file(1))
    _refused(ranks, PlanError, "the file of rank 0 was written by rank 1")


def test_one_file_twice(ranks: Path) -> None:
    shutil.copy(ranks / _file(0), ranks / _file(2))
    _refused(ranks, PlanError, "fill 3 of 4 places|written by rank")


def _plain(folder: Path, *states: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for rank, state in enumerate(states):
        torch.save(state, folder / _file(rank, len(states)))
    return folder


def test_plain_tensors(tmp_path: Path) -> None:
    """What was not sharded is the same on every rank."""
    state = {"w": torch.arange(6.0).reshape(2, 3), "module._extra_state": None}
    found = open_checkpoint(_plain(tmp_path / "one", state))
    assert set(found.tensors) == {"w"} and not any(p.left_copy for p in found.relation.pairs)
    found = open_checkpoint(_plain(tmp_path / "two", state, state))
    assert sum(p.left_copy for p in found.relation.pairs) == 1
    assert any("module._extra_state" in n.text for n in found.notes)


def test_ranks_that_disagree(tmp_path: Path) -> None:
    a, b = {"w": torch.zeros(3)}, {"w": torch.zeros(2)}
    _refused(_plain(tmp_path / "shape", a, b), PlanError, r"w: ranks 0 and 1 disagree.*\[3\].*\[2\]")
    _refused(_plain(tmp_path / "dtype", a, {"w": torch.zeros(3).half()}), PlanError, "w: ranks 0 and 1 disag")
    _refused(_plain(tmp_path / "name", a, {"v": a["w"]}), PlanError, "w is not in the file of rank 1")
    _refused(_plain(tmp_path / "sparse", {"w": torch.eye(3).to_sparse()}), FormatError, "w: .* neither plain")


def _dtensors(folder: Path, placements: list[Any], save: Callable[..., object] = torch.save) -> Path:
    """Save a DTensor on a mesh of one rank, whose placements say how it would be cut."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, init_device_mesh

    folder.mkdir()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,) * len(placements))
        tensor = DTensor.from_local(torch.ones(4, 2), mesh, placements)
        save({"w": tensor}, folder / _file(0, 1))
        return folder
    finally:
        dist.destroy_process_group()


def test_placements_that_cannot_be_merged(tmp_path: Path) -> None:
    from torch.distributed.tensor import Partial, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    _refused(_dtensors(tmp_path / "partial", [Partial()]), PlanError, "w: the placement Partial")
    _refused(_dtensors(tmp_path / "twice", [Shard(0), Shard(0)]), PlanError, "w: one axis is cut by several")
    strided = [_StridedShard(0, split_factor=1), Shard(0)]
    _refused(_dtensors(tmp_path / "strided", strided), PlanError, "w: the placement _StridedShard")
    found = open_checkpoint(_dtensors(tmp_path / "fine", [Shard(0), Shard(1)]))
    assert found.tensors["w"].shape == (4, 2)


def test_tensors_of_an_npu(tmp_path: Path) -> None:
    from torch.distributed.tensor import Shard

    folder = _dtensors(tmp_path / "npu", [Shard(0)], save_as_npu)
    assert b"torch_npu.utils.storage" in (folder / _file(0, 1)).read_bytes()
    assert open_checkpoint(folder).tensors["w"].shape == (4, 2)


def test_masters(case: Path) -> None:
    with pytest.raises(UsageError, match="no fp32 masters"):
        open_checkpoint(case / "ckpt", {"weights": "master"})
