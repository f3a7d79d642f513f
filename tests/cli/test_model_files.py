"""The folder is complete: config, generation config, tokenizer and template, true to the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from running import CASES, DEMO, case_run, contents, fails, final_names, succeeds

TIED = "qwen2tied_z2_bf16_ws2"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A Trainer's checkpoint that may be spoilt."""
    shutil.copytree(DEMO, tmp_path / "run")
    return tmp_path / "run"


def test_tokenizer_and_template_are_copied_byte_for_byte(run: Path, out: Path) -> None:
    (run / "chat_template.jinja").write_bytes("{{ messages }}\r\n  \u4f60\u597d\n".encode())
    (run / "additional_chat_templates").mkdir()
    (run / "additional_chat_templates" / "tools.jinja").write_bytes(b"{{ tools }}")
    (run / "special_tokens_map.json").write_bytes(b'{ "bos_token" : "<s>" }')
    (run / "generation_config.json").write_bytes(b'{"temperature":0.5}')
    succeeds("deepspeed-to-hf", run, out)
    names = {n for n in contents(run) if "/" not in n or n.endswith(".jinja")}
    names -= {"latest", "trainer_state.json", "config.json"}
    assert {"tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tools.jinja"} <= names
    written = contents(out)
    assert {n: written[n] for n in names} == {n: contents(run)[n] for n in names}
    assert set(written) == names | {"config.json", "model.safetensors"}


def test_the_tokenizer_loads(out: Path) -> None:
    from transformers import AutoTokenizer

    succeeds("deepspeed-to-hf", DEMO, out)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (out, DEMO))
    assert ours("to be or not")["input_ids"] == theirs("to be or not")["input_ids"]
    chat = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)


def test_config_changes_in_nothing_but_what_was_written(out: Path) -> None:
    succeeds("deepspeed-to-hf", DEMO, out, "--dtype", "float16")
    before, after = (json.loads((f / "config.json").read_text()) for f in (DEMO, out))
    assert {k for k in {*before, *after} if before.get(k) != after.get(k)} == {"dtype"}
    assert list(after) == list(before)
    assert after["dtype"] == "float16"


def test_generation_config_is_derived_where_there_is_none(run: Path, out: Path) -> None:
    (run / "generation_config.json").unlink()
    succeeds("deepspeed-to-hf", run, out)
    from transformers import GenerationConfig

    config = json.loads((run / "config.json").read_text())
    found = GenerationConfig.from_pretrained(out)
    assert (found.bos_token_id, found.eos_token_id) == (config["bos_token_id"], config["eos_token_id"])


def test_config_from_elsewhere(run: Path, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "base"
    elsewhere.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.move(run / name, elsewhere / name)
    fails(4, "deepspeed-to-hf", run, out, naming=("config.json", "--config"), out=out)
    succeeds("deepspeed-to-hf", run, out, "--config", elsewhere)
    succeeds("deepspeed-to-hf", run, tmp_path / "out2", "--config", elsewhere / "config.json")
    assert contents(out) == contents(tmp_path / "out2")
    assert (out / "tokenizer.json").exists(), "the tokenizer beside the checkpoint still counts"


def test_a_config_file_of_another_name_is_not_silently_replaced(run: Path, out: Path) -> None:
    shutil.copyfile(run / "config.json", run / "config-large.json")
    fails(
        2,
        "deepspeed-to-hf",
        run,
        out,
        "--config",
        run / "config-large.json",
        naming=("config-large.json",),
        out=out,
    )


def test_tokenizer_from_elsewhere(run: Path, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "base"
    elsewhere.mkdir()
    (elsewhere / "tokenizer.json").write_bytes(b'{"other": 1}')
    succeeds("deepspeed-to-hf", run, out, "--tokenizer", elsewhere)
    written = contents(out)
    assert written["tokenizer.json"] == b'{"other": 1}'
    assert "tokenizer_config.json" not in written, "two tokenizers must not be mixed"
    (empty := tmp_path / "empty").mkdir()
    fails(2, "deepspeed-to-hf", run, tmp_path / "out2", "--tokenizer", empty, naming=("--tokenizer", "empty"))


@pytest.mark.parametrize("flag", ["--config", "--tokenizer"])
def test_a_folder_that_is_not_there(run: Path, out: Path, flag: str) -> None:
    fails(2, "deepspeed-to-hf", run, out, flag, "./no/such/folder", naming=(flag, "no/such/folder"), out=out)


@pytest.mark.parametrize("flag", ["--config", "--tokenizer"])
def test_a_hub_id_that_cannot_be_reached(
    run: Path, out: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    fails(
        1,
        "deepspeed-to-hf",
        run,
        out,
        flag,
        "no-such-org/none",
        naming=(flag, "no-such-org/none", "HF_HUB_OFFLINE"),
        out=out,
    )


def test_a_hub_id(run: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    cache = tmp_path / "cache"
    cache.mkdir()
    shutil.move(run / "config.json", cache / "config.json")
    asked = []

    def download(repo: str, **_: object) -> str:
        asked.append(repo)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    succeeds("deepspeed-to-hf", run, out, "--config", "org/model")
    assert asked == ["org/model"] and (out / "config.json").exists()


def test_no_assets_writes_weights_alone(out: Path) -> None:
    succeeds("deepspeed-to-hf", DEMO, out, "--no-assets")
    assert sorted(contents(out)) == ["model.safetensors"]


def test_no_tokenizer_is_said(run: Path, out: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (run / name).unlink()
    assert "--tokenizer" in succeeds("deepspeed-to-hf", run, out).err


def test_a_tied_model_is_written_once_and_says_so(tmp_path: Path, out: Path) -> None:
    run = case_run(TIED, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    result = succeeds("deepspeed-to-hf", run, out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight = model.embed_tokens.weight" in result.out
    (run / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    succeeds("deepspeed-to-hf", run, tmp_path / "out2")
    assert json.loads((tmp_path / "out2" / "config.json").read_text())["tie_word_embeddings"] is True


def test_family(run: Path, out: Path, tmp_path: Path) -> None:
    succeeds("deepspeed-to-hf", run, out, "--family", "llama")
    fails(
        2,
        "deepspeed-to-hf",
        run,
        tmp_path / "out2",
        "--family",
        "llamma",
        naming=("llamma", "llama", "qwen2"),
    )


def test_an_unknown_architecture_passes_through_and_is_said(run: Path, out: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "model_type": "brand-new"}))
    assert "brand-new" in succeeds("deepspeed-to-hf", run, out).err
    assert final_names(out) == ["config.json", "model.safetensors"]


@pytest.mark.slow
def test_a_bare_vocabulary_becomes_the_full_tokenizer(tmp_path: Path, out: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer

    run = case_run("gpt2tied_z2_fp16_ws3", tmp_path / "run")
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["to be or not to be, that is the question"] * 20, vocab_size=300)
    made.save_model(str(run))
    before = {n: (run / n).read_bytes() for n in ("vocab.json", "merges.txt")}
    config = json.loads((run / "config.json").read_text())
    auto = {"AutoConfig": "mine.Config", "AutoTokenizer": ["mine.Tokenizer", None]}
    (run / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    (run / "mine.py").write_text("raise SystemExit('it ran')\n")
    succeeds("deepspeed-to-hf", run, out)
    written = contents(out)
    assert {n: written[n] for n in before} == before
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= set(written)
    ids = AutoTokenizer.from_pretrained(out)("to be or not")["input_ids"]
    assert ids == made.encode("to be or not").ids


@pytest.mark.slow
def test_a_sentencepiece_model_becomes_the_full_tokenizer(tmp_path: Path, out: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import AutoTokenizer

    run = case_run("llama_z0_bf16_ws2", tmp_path / "run")
    text = tmp_path / "text"
    text.write_text("to be or not to be, that is the question\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(run / "tokenizer"),
        vocab_size=280,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (run / "tokenizer.vocab").unlink()
    succeeds("deepspeed-to-hf", run, out)
    written = contents(out)
    assert written["tokenizer.model"] == (run / "tokenizer.model").read_bytes()
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= set(written)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("to be or not", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "to be or not"


def test_the_gold_config_is_that_of_the_case() -> None:
    """The cases used here really are tied, or nothing above means anything."""
    assert json.loads((CASES / TIED / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_model_of_no_tensors_is_an_error(tmp_path: Path) -> None:
    fails(4, "deepspeed-to-hf", DEMO, tmp_path / "out", "--drop", "*", naming=("no tensor is left",))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    fails(1, "convert", tmp_path / "in", tmp_path / "out", "--to", "hf", naming=("no tensor",))
