"""Archives of NeMo 1, and the folders they unpack to, go to Hugging Face's form without being unpacked."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ckptconv
from ckptconv.errors import CkptconvError, FormatError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}
CONFIG = """\
mcore_gpt: true
encoder_seq_length: 128
max_position_embeddings: 128
num_layers: 4
hidden_size: 64
ffn_hidden_size: 96
num_attention_heads: 4
num_query_groups: 2
normalization: rmsnorm
layernorm_epsilon: 1.0e-05
activation: fast-swiglu
bias: false
position_embedding_type: rope
rotary_percentage: 1.0
rotary_base: 50000.0
share_embeddings_and_output_weights: false
precision: bf16-mixed
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=96,
        intermediate_size=96,
        num_hidden_layers=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_theta=50000.0,
        **SIZES,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _unpacked(model: Path, folder: Path, kind: str) -> Path:
    """Lay a model out as NeMo does: in one file, ranks, stages, or a distributed checkpoint."""
    folder.mkdir()
    tp, pp = {"one": (1, 1), "ranks": (2, 1), "stages": (2, 2), "distributed": (2, 1)}[kind]
    text = f"{CONFIG}tensor_model_parallel_size: {tp}\npipeline_model_parallel_size: {pp}\n"
    (folder / "model_config.yaml").write_text(text)
    made = folder.with_name(folder.name + "-megatron")
    if kind == "distributed":
        ckptconv.convert(model, made, to="torch_dist", assets=False)
        [step] = made.glob("iter_*")
        shutil.move(step, folder / "model_weights")
        torch.save({"state_dict": {}, "epoch": 0}, folder / "model_weights" / "common.pt")
        return folder
    ckptconv.convert(model, made, to="megatron", sizes={"tp": tp, "pp": pp})
    for file in made.rglob("model_optim_rng.pt"):
        numbers = file.parent.name.removeprefix("mp_rank_").split("_")
        name = {"one": ".", "ranks": file.parent.name}.get(kind) or "tp_rank_{}_pp_rank_{}".format(*numbers)
        state = torch.load(file, weights_only=False)["model"]
        (folder / name).mkdir(exist_ok=True)
        torch.save({f"model.{k}": v for k, v in state.items()}, folder / name / "model_weights.ckpt")
    return folder


def _same(out: Path, model: Path, **wanted: Any) -> None:
    found, answer = (load_file(p / "model.safetensors") for p in (out, model))
    assert found.keys() == answer.keys()
    assert all(torch.equal(found[n], answer[n]) for n in found)
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.rope_parameters["rope_theta"] == 50000.0 and config.num_key_value_heads == 2


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["one", "ranks", "stages", "distributed"])
def test_every_layout_is_read(model: Path, tmp_path: Path, kind: str, packed: bool) -> None:
    source = _unpacked(model, tmp_path / "run", kind)
    if packed:
        archive = tmp_path / "llama.nemo"
        with tarfile.open(archive, "w:") as tar:
            tar.add(source, arcname=".")
        shutil.rmtree(source)
        source = archive
    ckptconv.convert(source, tmp_path / "out", vocab_size=96)
    _same(tmp_path / "out", model)


def test_the_folder_of_an_archive_is_enough(model: Path, tmp_path: Path) -> None:
    source = _unpacked(model, tmp_path / "run", "one")
    with tarfile.open(tmp_path / "models.nemo", "w:") as tar:
        tar.add(source, arcname=".")
    (tmp_path / "there").mkdir()
    (tmp_path / "models.nemo").rename(tmp_path / "there" / "models.nemo")
    ckptconv.convert(tmp_path / "there", tmp_path / "out", vocab_size=96)
    _same(tmp_path / "out", model)


def test_a_compressed_archive_is_refused_with_the_way(model: Path, tmp_path: Path) -> None:
    source = _unpacked(model, tmp_path / "run", "one")
    with tarfile.open(tmp_path / "llama.nemo", "w:gz") as tar:
        tar.add(source, arcname=".")
    with pytest.raises(FormatError) as caught:
        ckptconv.convert(tmp_path / "llama.nemo", tmp_path / "out")
    assert "tar xf llama.nemo" in (caught.value.hint or "")


@pytest.mark.parametrize("keep", [600, -4000])
def test_an_archive_that_was_cut_off_is_refused(model: Path, tmp_path: Path, keep: int) -> None:
    source = _unpacked(model, tmp_path / "run", "one")
    with tarfile.open(tmp_path / "llama.nemo", "w:") as tar:
        for name in ("model_config.yaml", "model_weights.ckpt"):
            tar.add(source / name, arcname=f"./{name}")
    whole = (tmp_path / "llama.nemo").read_bytes().rstrip(b"\0")
    (tmp_path / "llama.nemo").write_bytes(whole[:keep])
    with pytest.raises(CkptconvError):
        ckptconv.convert(tmp_path / "llama.nemo", tmp_path / "out", vocab_size=96)


def test_a_rank_that_is_missing_is_named(model: Path, tmp_path: Path) -> None:
    source = _unpacked(model, tmp_path / "run", "ranks")
    shutil.rmtree(source / "mp_rank_01")
    with pytest.raises(CkptconvError, match="mp_rank_01"):
        ckptconv.convert(source, tmp_path / "out", vocab_size=96)
