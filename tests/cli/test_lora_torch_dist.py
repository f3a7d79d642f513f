"""LoRA adapters in ``torch_dist`` are merged, or written for PEFT: Megatron-Bridge's and ms-swift's."""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

import ckptconv
from ckptconv.errors import CkptconvError

pytestmark = pytest.mark.filterwarnings("ignore")
MODULES = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")
RANK, ALPHA, SCALE = 2, 4, 2
PEFT = f"peft:\n  _target_: megatron.bridge.peft.lora.LoRA\n  dim: {RANK}\n  alpha: {ALPHA}\n"

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name, wanted in (("bridge", "bridge/llama/"), ("producers", "producers/mcore-bridge-qwen3-lora/")):
        with tarfile.open(fixtures / f"{name}.tar.xz") as tar:
            tar.extractall(folder, [m for m in tar if m.name.startswith(wanted)], filter="data")
    return folder


@pytest.fixture(scope="module")
def base(saved: Path) -> Path:
    return saved / "bridge" / "llama" / "ckpt_tp1"


def read(folder: Path) -> Tensors:
    """Read all tensors of a distributed checkpoint, as they are saved."""
    reader = dcp.FileSystemReader(folder)
    found = {
        k: torch.empty(v.size, dtype=v.properties.dtype)
        for k, v in reader.read_metadata().state_dict_metadata.items()
        if hasattr(v, "size")
    }
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def save(tensors: Tensors, folder: Path, like: Path, *, peft: bool = False) -> Path:
    """Save tensors as Megatron-Bridge does, with the settings of another run."""
    inner, own = folder / "iter_0000000", like / "iter_0000000"
    dcp.save(dict(tensors), checkpoint_id=inner, no_dist=True)
    torch.save({"iteration": 0, "checkpoint_version": 3.0}, inner / "common.pt")
    shutil.copy(own / "metadata.json", inner)
    text = (own / "run_config.yaml").read_text()
    (inner / "run_config.yaml").write_text(text.replace("peft: null\n", PEFT) if peft else text)
    (folder / "latest_checkpointed_iteration.txt").write_text("0")
    return folder


def factors(weights: Tensors) -> Tensors:
    """Make small whole numbers, so that products are exact."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for module in MODULES:
        layers, out, into = weights[f"decoder.layers.{module}.weight"].shape
        for part, shape in (("in", (layers, RANK, into)), ("out", (layers, out, RANK))):
            numbers = torch.randint(-2, 3, shape, generator=generator) / 64
            made[f"decoder.layers.{module}.adapter.linear_{part}.weight"] = numbers
    return made


def merged(weights: Tensors, parts: Tensors) -> Tensors:
    found = dict(weights)
    for module in MODULES:
        key = f"decoder.layers.{module}"
        product = parts[f"{key}.adapter.linear_out.weight"] @ parts[f"{key}.adapter.linear_in.weight"]
        whole = found[f"{key}.weight"].float() + SCALE * product
        found[f"{key}.weight"] = whole.to(weights[f"{key}.weight"].dtype)
    return found


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter in a folder of its own, one beside its weights, and the merged model."""
    folder = tmp_path_factory.mktemp("runs")
    weights = read(base / "iter_0000000")
    parts = factors(weights)
    answer = folder / "answer"
    ckptconv.convert(save(merged(weights, parts), folder / "merged", base), answer)
    return {
        "alone": save(parts, folder / "alone", base, peft=True),
        "beside": save({**weights, **parts}, folder / "beside", base, peft=True),
        "answer": answer,
    }


def same(out: Path, answer: Path) -> None:
    found, wanted = (load_file(p / "model.safetensors") for p in (out, answer))
    assert found.keys() == wanted.keys()
    assert [n for n in found if not torch.equal(found[n], wanted[n])] == []


def test_bridge_adapter_on_its_model(runs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """Alpha and rank are those of ``peft`` in the run's settings; the model may be Hugging Face's."""
    ckptconv.convert(base, tmp_path / "out", adapter=runs["alone"])
    same(tmp_path / "out", runs["answer"])
    ckptconv.convert(base.parent / "hf", tmp_path / "hf", adapter=runs["alone"])
    same(tmp_path / "hf", runs["answer"])
    assert not torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"],
        load_file(base.parent / "hf" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"],
    )
    with pytest.raises(CkptconvError, match=r"run_config\.yaml says 4"):
        ckptconv.convert(base, tmp_path / "other", adapter=runs["alone"], lora_alpha=9)


def test_bridge_adapter_beside_the_weights(runs: dict[str, Path], tmp_path: Path) -> None:
    ckptconv.convert(runs["beside"], tmp_path / "out", lora="merge")
    same(tmp_path / "out", runs["answer"])
    with pytest.raises(CkptconvError, match="LoRA adapters of 16 weights"):
        ckptconv.convert(runs["beside"], tmp_path / "unasked")


@pytest.mark.parametrize("run", ["alone", "beside"])
def test_bridge_adapter_for_peft(runs: dict[str, Path], base: Path, tmp_path: Path, run: str) -> None:
    """No config is needed: the run's settings tell the model, the factors whether there is a gate."""
    ckptconv.convert(runs[run], tmp_path / "adapter", lora="adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    ckptconv.convert(base.parent / "hf", tmp_path / "out", adapter=tmp_path / "adapter")
    same(tmp_path / "out", runs["answer"])


@pytest.mark.parametrize(
    "name", ["linear_proj.adapter.weight_magnitude", "linear_qkv.adapter.adapter_q.linear_in.weight"]
)
def test_what_is_more_than_one_product_is_refused(
    runs: dict[str, Path], base: Path, tmp_path: Path, name: str
) -> None:
    parts = read(runs["alone"] / "iter_0000000")
    more = {f"decoder.layers.self_attention.{name}": torch.ones(4, RANK, 64)}
    run = save({**parts, **more}, tmp_path / "run", base, peft=True)
    with pytest.raises(CkptconvError, match="no plain LoRA"):
        ckptconv.convert(base, tmp_path / "out", adapter=run)
    with pytest.raises(CkptconvError, match="no plain LoRA"):
        ckptconv.convert(run, tmp_path / "out", lora="adapter")


def test_swift_adapter_beside_base_layers(runs: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """The weights lie in ``base_layer``; the arguments say alpha and rank."""
    tensors = {}
    for name, tensor in read(runs["beside"] / "iter_0000000").items():
        module = name.removeprefix("decoder.layers.").rpartition(".")[0]
        stem, _, leaf = name.rpartition(".")
        key = f"{stem}.base_layer.{leaf}" if module in MODULES else name
        for part, letter in (("in", "A"), ("out", "B")):
            key = key.replace(f".adapter.linear_{part}.", f".lora_{letter}.default.")
        tensors[key] = tensor
    run = save(tensors, tmp_path / "run", base)
    (run / "iter_0000000" / "run_config.yaml").unlink()
    args = argparse.Namespace(tuner_type="lora", lora_rank=RANK, lora_alpha=ALPHA, model_type="llama")
    common = {"args": args, "iteration": 0, "checkpoint_version": 3.0}
    torch.save(common, run / "iter_0000000" / "common.pt")
    ckptconv.convert(run, tmp_path / "out", lora="merge", config=str(base.parent / "hf"))
    same(tmp_path / "out", runs["answer"])


def test_swift_adapter_alone(saved: Path, tmp_path: Path) -> None:
    """What ms-swift saved of a LoRA run: its factors, and arguments without the model's sizes."""
    run = saved / "producers" / "mcore-bridge-qwen3-lora"
    with pytest.raises(CkptconvError, match="do not tell which model") as caught:
        ckptconv.convert(run / "ckpt", tmp_path / "out", lora="adapter")
    assert "config" in (caught.value.hint or "")
    with pytest.raises(CkptconvError, match="no such weight"):
        ckptconv.convert(run / "ckpt", tmp_path / "out", lora="merge", config=str(run / "hf"))
    ckptconv.convert(run / "ckpt", tmp_path / "out", lora="adapter", config=str(run / "hf"))
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    stored = read(run / "ckpt" / "checkpoint-10" / "iter_0000010")
    for layer in range(2):
        stem = f"base_model.model.model.layers.{layer}"
        both = stored["decoder.layers.mlp.linear_fc1.lora_B.default.weight"][layer]
        halves = (found[f"{stem}.mlp.{n}_proj.lora_B.weight"] for n in ("gate", "up"))
        assert torch.equal(torch.cat([*halves]), both)
        # 2 groups of 2 query heads, a key and a value, of 16 rows each
        rows = stored["decoder.layers.self_attention.linear_qkv.lora_B.default.weight"][layer].view(
            2, 4, 16, 4
        )
        assert torch.equal(found[f"{stem}.self_attn.q_proj.lora_B.weight"], rows[:, :2].reshape(64, 4))
        assert torch.equal(found[f"{stem}.self_attn.v_proj.lora_B.weight"], rows[:, 3].reshape(32, 4))
    assert len(found) == 28


def test_an_up_projection_alone_is_gated_as_the_arguments_say(base: Path, tmp_path: Path) -> None:
    stem = "decoder.layers.mlp.linear_fc1.lora_"
    tensors = {
        f"{stem}A.default.weight": torch.ones(2, RANK, 8),
        f"{stem}B.default.weight": torch.ones(2, 6, RANK),
    }
    run = save(tensors, tmp_path / "run", base)
    (run / "iter_0000000" / "run_config.yaml").unlink()
    for inner, gated in ((6, False), (3, True)):
        args = argparse.Namespace(num_layers=2, ffn_hidden_size=inner)
        torch.save({"args": args, "iteration": 0}, run / "iter_0000000" / "common.pt")
        assert ("mlp.gate" in ckptconv.open(run).checkpoint.words.names) is gated


def test_megatron_fsdp_without_arguments(base: Path, tmp_path: Path) -> None:
    """Megatron-Bridge's ``fsdp_dtensor`` keeps no arguments: the run's settings tell the model."""
    model = {}
    for name, tensor in read(base / "iter_0000000").items():
        layered = name.startswith("decoder.layers.")
        for i, one in enumerate(tensor) if layered else [(0, tensor)]:
            key = f"module.{name.replace('layers.', f'layers.{i}.', 1) if layered else name}"
            if key.endswith("linear_fc1.weight"):
                model[f"{key}_w"], model[f"{key}_v"] = one.chunk(2)
            else:
                model[key] = one
    inner = tmp_path / "run" / "iter_0000000"
    state = {"model": model, "iteration": 0, "checkpoint_version": 3.0, "optimizer": {"param_groups": [{}]}}
    dcp.save(state, checkpoint_id=inner, no_dist=True)
    hf = base.parent / "hf"
    ckptconv.convert(tmp_path / "run", tmp_path / "given", config=str(hf))
    same(tmp_path / "given", hf)
    shutil.copy(base / "iter_0000000" / "run_config.yaml", inner)
    ckptconv.convert(tmp_path / "run", tmp_path / "out")
    same(tmp_path / "out", hf)


def test_an_adapter_of_ms_swift_on_the_hugging_face_model(saved: Path, tmp_path: Path) -> None:
    run = saved / "producers" / "mcore-bridge-qwen3-lora"
    ckptconv.convert(run / "ckpt", tmp_path / "peft", lora="adapter", config=str(run / "hf"))
    ckptconv.convert(run / "hf", tmp_path / "two", adapter=tmp_path / "peft")
    ckptconv.convert(run / "hf", tmp_path / "one", adapter=run / "ckpt")
    one, two, before = (
        load_file(p / "model.safetensors") for p in (tmp_path / "one", tmp_path / "two", run / "hf")
    )
    assert one.keys() == two.keys() == before.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], before[n]) for n in one)
