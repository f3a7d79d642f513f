"""Folders as training libraries leave them go to Hugging Face's form, from the folder a user names."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import ckptconv
from ckptconv.errors import CkptconvError, MismatchError
from ckptconv.facts.facts import read_facts
from ckptconv.readers.megatron.run_config import run_arguments

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed.checkpoint")


@pytest.fixture(scope="module")
def saved(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of all libraries, unpacked."""
    folder = tmp_path_factory.mktemp("producers")
    for name in ("producers", "bridge"):
        with tarfile.open(fixtures / f"{name}.tar.xz") as tar:
            tar.extractall(folder, filter="data")
    return folder


def _same(out: Path, answer: Path) -> None:
    found = {k: v for f in out.glob("*.safetensors") for k, v in load_file(f).items()}
    wanted = {k: v for f in answer.glob("*.safetensors") for k, v in load_file(f).items()}
    assert found.keys() == wanted.keys()
    assert [n for n in found if not torch.equal(found[n], wanted[n])] == []
    # The routers' biases are fp32 in the ranks and stay so; the answers' are rounded like all else.
    unlike = [n for n in found if found[n].dtype != wanted[n].dtype]
    assert [n for n in unlike if not n.endswith("e_score_correction_bias")] == []
    assert all(found[n].dtype == torch.float32 for n in unlike)


# The files say everything: no flag is needed.
SAYS_ALL = (
    *("producers/composer/ckpt/ep0-ba10-rank0.pt", "producers/litgpt/ckpt", "producers/meta/ckpt"),
    "producers/verl-megatron/ckpt_v2",
    *(f"bridge/{name}/ckpt_tp1" for name in (
        "deepseek_v2", "deepseek_v3", "deepseek_v3mtp", "gemma", "glm4_moe", "glm4_moe_lite", "gpt_oss",
        "llama", "llama31", "llama_tied", "mistral", "qwen2", "qwen2_tied", "qwen3", "qwen3_5",
        "qwen3_5_moe", "qwen3_5mtp", "qwen3_moe", "qwen3_next", "qwen3_nextmtp",
        "gemma3", "glm_moe_dsa", "nemotron_h", "qwen3_vl", "qwen3_5_vl",
    )),
    *("bridge/llama/ckpt_hybrid_tp1", "bridge/qwen3_next/ckpt_tp2"),
)  # fmt: skip
# config.json is nowhere in them.
NEEDS_CONFIG = (
    *("producers/composer/ckpt/ep0-ba10", "producers/composer/ckpt/small.pt", "producers/torchtitan/ckpt"),
    *("producers/lightning/ckpt/attr-net.ckpt", "producers/lightning/ckpt/epoch=0-step=10.ckpt"),
    *(
        "producers/nemo2-emulated/ckpt",
        "producers/torchtune/ckpt",
        "producers/dcp-hf-sharded/ckpt",
        "producers/olmo-core/ckpt",
    ),
    *("producers/mcore-bridge-qwen3/ckpt", "producers/mcore-bridge-qwen3vl/ckpt"),
)


def _answer(saved: Path, name: str) -> Path:
    return saved.joinpath(*name.split("/")[:2], "hf")


@pytest.mark.parametrize("name", SAYS_ALL)
def test_no_flag_is_needed(saved: Path, tmp_path: Path, name: str) -> None:
    ckptconv.convert(saved / name, tmp_path / "out")
    _same(tmp_path / "out", _answer(saved, name))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = json.loads((_answer(saved, name) / "config.json").read_text())
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size"):
        assert config.get(key) == wanted.get(key), key


@pytest.mark.parametrize("name", NEEDS_CONFIG)
def test_a_config_is_enough(saved: Path, tmp_path: Path, name: str) -> None:
    answer = _answer(saved, name)
    ckptconv.convert(saved / name, tmp_path / "out", config=str(answer))
    _same(tmp_path / "out", answer)


def test_the_config_inside_a_folder_of_composer_is_taken(saved: Path, tmp_path: Path) -> None:
    """Composer's sharded saves flatten it into records."""
    answer = saved / "producers" / "composer" / "hf"
    config = json.loads((answer / "config.json").read_text())
    inside = {"huggingface": {"model": {"config": {"file_extension": ".json", "content": config}}}}
    model = {f"model.{n}": t for n, t in load_file(answer / "model.safetensors").items()}
    state = {"state": {"model": model, "integrations": inside}, "rng": [1]}
    torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "ep0-ba10", no_dist=True)
    ckptconv.convert(tmp_path / "ep0-ba10", tmp_path / "out")
    _same(tmp_path / "out", answer)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {k: written[k] for k in ("architectures", "model_type", "hidden_size")} == {
        k: config[k] for k in ("architectures", "model_type", "hidden_size")
    }


def test_the_layers_of_gpt_neox(saved: Path, tmp_path: Path) -> None:
    """Its answer is in fp32, the run in fp16."""
    run = saved / "producers" / "gpt-neox-emulated"
    ckptconv.convert(run / "ckpt_tp1", tmp_path / "out", config=str(run / "hf"))
    found, wanted = (load_file(p / "model.safetensors") for p in (tmp_path / "out", run / "hf"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n].half()) for n in found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gemma3_provider.Gemma3ModelProvider", "own.OwnModelProvider", "OwnModelProvider"),
        ("  softmax_type: vanilla", "  softmax_type: learnable", "sinks"),
    ],
)
def test_what_a_class_computes_beyond_what_is_known_needs_a_config(
    saved: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved / "bridge" / "gemma3" / "ckpt_tp1", run)
    file = run / "iter_0000000" / "run_config.yaml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CkptconvError) as caught:
        ckptconv.convert(run, tmp_path / "out")
    assert "config" in (caught.value.hint or "")
    found = run_arguments(file.parent)
    assert found is not None and any(said in note.text for note in found[1])


def test_a_shard_that_is_there_twice_is_compared(tmp_path: Path) -> None:
    info = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [0, 0]}})}
    for name, value in (("a", 1.0), ("b", 1.0)):
        save_file({"w": torch.full((2, 3), value)}, tmp_path / f"{name}.safetensors", info)
    assert ckptconv.open(tmp_path).read("w").tolist() == [[1.0] * 3] * 2
    save_file({"w": torch.full((2, 3), 2.0)}, tmp_path / "b.safetensors", info)
    with pytest.raises(MismatchError):
        ckptconv.open(tmp_path).read("w")


def test_one_of_two_ranks_is_refused(saved: Path, tmp_path: Path) -> None:
    [first, *_] = sorted((saved / "producers" / "meta").rglob("consolidated.00.pth"))
    run = tmp_path / "run"
    run.mkdir()
    (run / first.name).write_bytes(first.read_bytes())
    (run / "consolidated.02.pth").write_bytes(first.read_bytes())
    (run / "params.json").write_bytes((first.parent / "params.json").read_bytes())
    with pytest.raises(CkptconvError, match=r"consolidated\.01\.pth"):
        ckptconv.convert(run, tmp_path / "out")


@pytest.mark.parametrize(
    ("whose", "more", "factor", "before"),
    [
        ("Llama31Config8B", "", 8.0, 8192),
        ("Llama32Config1B", "", 32.0, 8192),
        ("Llama31Config", "  scale_factor: 4.0\n  old_context_len: 64\n", 4.0, 64),
        ("LlamaConfig", "", None, None),
    ],
)
def test_the_rotary_embedding_that_classes_of_nemo_scale(
    tmp_path: Path, whose: str, more: str, factor: float | None, before: int | None
) -> None:
    (tmp_path / "context").mkdir()
    text = f"config:\n  _target_: nemo.collections.llm.gpt.model.llama.{whose}\n  num_layers: 2\n{more}"
    (tmp_path / "context" / "model.yaml").write_text(text)
    found = run_arguments(tmp_path / "weights")
    assert found is not None
    scaling = read_facts(found[0])["rope_scaling"].value
    if factor is None:
        assert scaling is None
    else:
        assert (scaling["factor"], scaling["original_max_position_embeddings"]) == (factor, before)


@pytest.mark.parametrize("where", ["iter_0000000/tokenizer", "context/nemo_tokenizer"])
def test_the_tokenizer_inside_a_save_is_taken(saved: Path, tmp_path: Path, where: str) -> None:
    """Megatron-Bridge and NeMo 2 keep it there; the config takes its end of text."""
    run = tmp_path / "run"
    shutil.copytree(saved / "bridge" / "qwen3" / "ckpt_tp1", run)
    (run / where).mkdir(parents=True)
    added = [{"id": 7, "content": "<end>", "special": True}]
    model = {"type": "BPE", "vocab": {"<end>": 7}, "merges": []}
    (run / where / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": model}))
    (run / where / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    ckptconv.convert(run, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 7


def test_a_family_chosen_by_the_name_of_the_model_is_said(saved: Path) -> None:
    made = ckptconv.plan(saved / "bridge" / "qwen3_5_moe" / "ckpt_tp1")
    [guess] = [text for level, text in made.notes if level == "guess"]
    assert "qwen3_5_moe" in guess and "qwen3_next" in guess
