"""TensorFlow models become the torch models they are, bit for bit, or are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptconv.readers.registry import open_checkpoint
from running import assert_equal, ckptconv, fails, loaded, succeeds
from tensorflow_models import CASES, unpack


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("tensorflow"))


@pytest.fixture(autouse=True)
def _transformers_is_asked_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave transformers' word on names to the one test about loading: it takes seconds."""
    if "transformers" not in request.node.name:
        monkeypatch.setattr("ckptconv.planning.foreign.ask", lambda *asked: None)


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    """A copy of BERT's folder that may be spoilt."""
    return Path(shutil.copytree(models / "bert-mlm" / "source", tmp_path / "copy"))


@pytest.mark.parametrize("case", CASES)
def test_to_hugging_face(models: Path, tmp_path: Path, case: str) -> None:
    succeeds("convert", "--to", "hf", models / case / "source", tmp_path / "out")
    assert_equal(loaded(tmp_path / "out"), loaded(models / case / "hf"))
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    true = json.loads((models / case / "hf" / "config.json").read_bytes())
    for key in ("architectures", "model_type", "hidden_size", "dtype"):
        assert config.get(key) == true.get(key)
    succeeds("diff", models / case / "source", tmp_path / "out")


@pytest.mark.parametrize("case", ["resnet", "gpt2-sharded", "bert-tf1-ckpt"])
def test_it_is_proved_as_any_source_is(models: Path, tmp_path: Path, case: str) -> None:
    succeeds("convert", "--to", "hf", models / case / "source", tmp_path / "out")
    succeeds("verify-roundtrip", models / case / "source", tmp_path / "out")
    succeeds("check", tmp_path / "out")


@pytest.mark.parametrize("case", ["bert-mlm", "gpt2-sharded", "mistral-st", "bert-tf1-ckpt"])
def test_transformers_loads_it_without_a_missing_name(models: Path, tmp_path: Path, case: str) -> None:
    import transformers

    succeeds("convert", "--to", "hf", models / case / "source", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    cls = getattr(transformers, config["architectures"][0])
    _, found = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_other_targets_take_it_as_any_source(models: Path, tmp_path: Path) -> None:
    source, true = models / "gpt2-sharded" / "source", loaded(models / "gpt2-sharded" / "hf")
    succeeds("convert", "--to", "megatron", "--tp", "2", source, tmp_path / "ranks")
    (tmp_path / "config").mkdir()
    shutil.copyfile(source / "config.json", tmp_path / "config" / "config.json")
    succeeds("megatron-merge", "--config", tmp_path / "config", tmp_path / "ranks", tmp_path / "back")
    assert_equal(loaded(tmp_path / "back"), true)
    succeeds("convert", "--to", "hf", "--dtype", "bfloat16", source, tmp_path / "half")
    assert_equal(loaded(tmp_path / "half"), {n: t.to(torch.bfloat16) for n, t in true.items()})
    succeeds("diff", source, models / "gpt2-sharded" / "hf")


@pytest.mark.parametrize(
    "name", ["tf_model.h5", "../bert-tf1-ckpt/source/bert_model.ckpt.data-00000-of-00001"]
)
def test_a_file_may_be_named(models: Path, tmp_path: Path, name: str) -> None:
    path = models / "bert-mlm" / ("source" if name.endswith("h5") else "") / name
    succeeds("convert", "--to", "hf", path, tmp_path / "out")


def test_a_flip_is_found(models: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(models / "bert-tf1-ckpt" / "source", tmp_path / "source"))
    succeeds("convert", "--to", "hf", source, tmp_path / "out")
    data = source / "bert_model.ckpt.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[5] ^= 1
    data.write_bytes(raw)
    assert ckptconv("verify-roundtrip", source, tmp_path / "out").code == 3


def test_copies_of_a_variable_must_agree(copy: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(copy)
    twice = next(p for p in checkpoint.relation.pairs if p.left_copy)
    at = checkpoint.stored[twice.left.tensor].extents[0].offset
    raw = bytearray((copy / "tf_model.h5").read_bytes())
    raw[at] ^= 1
    (copy / "tf_model.h5").write_bytes(raw)
    fails(3, "convert", "--to", "hf", copy, tmp_path / "out", naming=("LayerNorm",), out=tmp_path / "out")


def test_without_a_config_the_scope_tells_the_class(copy: Path, models: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(models / "bert-base" / "source", tmp_path / "base"))
    (base / "config.json").unlink()
    found = open_checkpoint(base)
    assert set(found.tensors) == set(loaded(models / "bert-base" / "hf"))


def test_tf_safetensors_without_a_class_are_a_stated_guess(models: Path, tmp_path: Path) -> None:
    shutil.copyfile(models / "mistral-st" / "source" / "model.safetensors", tmp_path / "model.safetensors")
    notes = open_checkpoint(tmp_path).notes
    assert any(n.level == "guess" and "which class" in n.text for n in notes)


def test_torch_files_beside_are_read_first(copy: Path, models: Path) -> None:
    shutil.copyfile(models / "bert-mlm" / "hf" / "model.safetensors", copy / "model.safetensors")
    assert open_checkpoint(copy).producer == "huggingface"


def test_flax_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"a.kernel": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "flax"})
    fails(1, "convert", "--to", "hf", tmp_path, tmp_path / "out", naming=("Flax",))


def test_a_shard_that_is_missing_or_another(models: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(models / "gpt2-sharded" / "source", tmp_path / "source"))
    shard = source / "tf_model-00002-of-00006.h5"
    fails(1, "convert", "--to", "hf", shard, tmp_path / "out", naming=("one shard of a model",))
    kept = shard.read_bytes()
    shard.unlink()
    fails(4, "convert", "--to", "hf", source, tmp_path / "out", naming=(shard.name, "missing"))
    shard.write_bytes((source / "tf_model-00003-of-00006.h5").read_bytes())
    fails(4, "convert", "--to", "hf", source, tmp_path / "out", naming=("in the index, but not in",))
    shard.write_bytes(kept)
    index = source / "tf_model.h5.index.json"
    said = json.loads(index.read_bytes())
    name, _ = said["weight_map"].popitem()
    index.write_text(json.dumps(said))
    bare = name.partition("/")[2]
    fails(4, "convert", "--to", "hf", source, tmp_path / "out", naming=(bare, "not in the index"))
    said["weight_map"][name] = "../../etc/passwd"
    index.write_text(json.dumps(said))
    fails(1, "convert", "--to", "hf", source, tmp_path / "out", naming=("outside its folder",))


def test_what_carries_no_names_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for root, says in (
        ("layers/dense/vars", "Keras 3"),
        ("model_weights/a", "Keras"),
        ("data", "names no layers"),
    ):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file[f"{root}/0"] = [1.0, 2.0]
        fails(1, "convert", "--to", "hf", tmp_path / "x.h5", tmp_path / "out", naming=(says,))


def test_names_that_are_none_are_refused(models: Path, tmp_path: Path) -> None:
    tensors = load_file(models / "mistral-st" / "source" / "model.safetensors")
    tensors["model/\x1b[2Jw/kernel:0"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "tf"})
    message = fails(1, "inspect", tmp_path, naming=("not a name TensorFlow gives",))
    assert "\x1b" not in message


def test_one_of_several_savers_checkpoints(models: Path, tmp_path: Path) -> None:
    source = models / "bert-tf1-ckpt" / "source"
    for step in (10, 20):
        for path in source.iterdir():
            shutil.copyfile(path, tmp_path / path.name.replace("model.ckpt", f"model.ckpt-{step}"))
    fails(4, "inspect", tmp_path, naming=("2 checkpoints", "bert_model.ckpt-10.index", "--step"))
    assert '"step": 10' in succeeds("inspect", "--json", "--step", "10", tmp_path).out
    fails(2, "inspect", "--step", "15", tmp_path, naming=("step 15",))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/gs/run/bert_model.ckpt-20"\n')
    found = open_checkpoint(tmp_path)
    assert found.iteration == 20 and found.data.name == "bert_model.ckpt-20.index"
    assert open_checkpoint(tmp_path / "bert_model.ckpt-10.index").iteration == 10


@pytest.mark.parametrize("apart", [False, True])
def test_an_output_matrix_trained_apart_is_written(tmp_path: Path, apart: bool) -> None:
    embed = torch.arange(12.0).reshape(4, 3)
    head = embed + (torch.arange(12).reshape(4, 3) == 11) if apart else embed
    variables = {"model/decoder/embed_tokens/weight:0": embed, "lm_head/kernel:0": head.T.contiguous()}
    save_file(variables, tmp_path / "model.safetensors", {"format": "tf"})
    config = {"model_type": "speech_to_text", "architectures": ["Speech2TextForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    result = succeeds("convert", "--to", "hf", tmp_path, out)
    said = json.loads((out / "config.json").read_bytes()).get("tie_word_embeddings")
    if apart:
        assert_equal(loaded(out), {"model.decoder.embed_tokens.weight": embed, "lm_head.weight": head})
        assert said is False and "lm_head.weight differs" in result.err
        (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
        fails(3, "convert", "--to", "hf", tmp_path, tmp_path / "tied", naming=("lm_head",))
    else:
        assert_equal(loaded(out), {"model.decoder.embed_tokens.weight": embed})
        assert said is not False


WRITTEN = (
    "albert-mlm",
    "bert-base",
    "bert-mlm",
    "gpt2-sharded",
    "marian",
    "mistral-st",
    "resnet",
    "wav2vec2-ctc",
)


@pytest.mark.parametrize("size", ["5GB", "9KB"])
@pytest.mark.parametrize("case", WRITTEN)
def test_written_as_h5_and_read_again(models: Path, tmp_path: Path, case: str, size: str) -> None:
    source, out = models / case / "hf", tmp_path / "out"
    succeeds("convert", "--to", "hf", "--format", "h5", "--max-shard-size", size, source, out)
    names = {p.name for p in out.iterdir() if p.name.startswith("tf_model")}
    assert (
        ("tf_model.h5.index.json" in names and len(names) > 2) if size == "9KB" else names == {"tf_model.h5"}
    )
    succeeds("convert", "--to", "hf", out, tmp_path / "back")
    assert_equal(loaded(tmp_path / "back"), loaded(source))


def test_h5_is_proved_certified_and_replaced(models: Path, tmp_path: Path) -> None:
    source, out = models / "bert-mlm" / "hf", tmp_path / "out"
    succeeds("convert", "--to", "hf", "--format", "h5", "--verify", source, out)
    succeeds("check", out)
    raw = bytearray((out / "tf_model.h5").read_bytes())
    raw[-100] ^= 1
    (out / "tf_model.h5").write_bytes(raw)
    assert ckptconv("verify-roundtrip", source, out).code == 3 == ckptconv("check", out).code
    succeeds("convert", "--to", "hf", "--overwrite", source, out)
    assert not list(out.glob("*.h5"))


def test_h5_is_refused_where_tensorflow_could_not_read_it(models: Path, tmp_path: Path) -> None:
    source, out = models / "bert-mlm" / "hf", tmp_path / "out"
    wrong = ("convert", "--format", "h5", source, out)
    fails(4, *wrong, "--to", "hf", "--dtype", "bfloat16", naming=("bfloat16", "--dtype float32"), out=out)
    config = tmp_path / "config"
    config.mkdir()
    said = json.loads((source / "config.json").read_bytes())
    (config / "config.json").write_text(json.dumps({**said, "architectures": ["BertForQuestionAnswering"]}))
    fails(4, *wrong, "--to", "hf", "--config", config, naming=("TFBertForQuestionAnswering", "cls."), out=out)
