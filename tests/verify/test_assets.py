"""What stands beside the weights must be true to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptconv
from ckptconv.api.verify import verify_roundtrip
from running import CASES, DEMO, succeeds
from running import ckptconv as command

TIED = CASES / "qwen2tied_z2_bf16_ws2"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    ckptconv.convert(DEMO, tmp_path / "out", dtype="bfloat16")
    return tmp_path / "out"


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    def apply(out: Path) -> None:
        content = json.loads((out / name).read_text())
        (out / name).write_text(json.dumps({**content, **fields}))

    return apply


def more_words(out: Path) -> None:
    content = json.loads((out / "tokenizer.json").read_text())
    content["model"]["vocab"]["new"] = 100_000
    (out / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "naming"),
    [
        (change("config.json", hidden_size=64), "contradicts"),
        (change("config.json", num_hidden_layers=7), "layers"),
        (change("config.json", vocab_size=17), "17"),
        (change("config.json", dtype="float32", torch_dtype="float32"), "bfloat16"),
        (change("config.json", tie_word_embeddings=True), "lm_head"),
        (change("config.json", model_type="none", vocab_size=17), "17"),
        (lambda out: (out / "config.json").write_text("{"), "JSON"),
        (lambda out: (out / "tokenizer.json").write_text("{}"), "tokenizer"),
        (more_words, "100001"),
    ],
    ids=["hidden", "layers", "vocab", "dtype", "tied", "unknown", "json", "tokenizer", "words"],
)
def test_what_contradicts_the_weights(out: Path, spoil: Callable[[Path], None], naming: str) -> None:
    assert verify_roundtrip(DEMO, out).ok
    spoil(out)
    found = verify_roundtrip(DEMO, out).mismatches
    assert found and all(m.kind == "asset" for m in found)
    assert any(naming in m.text for m in found)


def test_a_tied_model(tmp_path: Path) -> None:
    ckptconv.convert(TIED / "ckpt", tmp_path / "out", config=str(TIED))
    assert verify_roundtrip(TIED / "ckpt", tmp_path / "out", config=str(TIED)).ok
    change("config.json", tie_word_embeddings=False)(tmp_path / "out")
    texts = [m.text for m in verify_roundtrip(TIED / "ckpt", tmp_path / "out", config=str(TIED)).mismatches]
    assert any("lm_head" in t for t in texts)


def test_tokens_that_are_only_added_are_a_warning(out: Path) -> None:
    content = json.loads((out / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 100_000, "content": "<new>"})
    (out / "tokenizer.json").write_text(json.dumps(content))
    result = verify_roundtrip(DEMO, out, tokenizer=str(out))
    assert result.ok and any("100000" in text for _, text in result.notes)


def test_weights_alone_are_said_to_be(tmp_path: Path) -> None:
    ckptconv.convert(DEMO, tmp_path / "out", assets=False)
    result = verify_roundtrip(DEMO, tmp_path / "out")
    assert result.ok and any("config.json" in text for level, text in result.notes if level == "warning")


class TestCode:
    """``--copy-code`` copies a model's own Python files; nothing ever runs them."""

    BOMB = "raise SystemExit('it ran')\n"

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        run = tmp_path / "run"
        shutil.copytree(DEMO, run)
        for name in ("modeling_mine.py", "helper.py", "zero_to_fp32.py"):
            (run / name).write_text(self.BOMB)
        auto = {
            "AutoModel": "modeling_mine.Mine",
            "AutoConfig": "configuration_mine.C",
            "AutoTokenizer": ["o/r--t.T"],
        }
        change("config.json", auto_map=auto)(run)
        return run

    def test_it_is_copied_when_asked_for(self, run: Path, tmp_path: Path) -> None:
        result = succeeds("deepspeed-to-hf", run, tmp_path / "out", "--copy-code", "--verify")
        assert {p.name for p in (tmp_path / "out").glob("*.py")} == {"modeling_mine.py", "helper.py"}
        assert (tmp_path / "out" / "modeling_mine.py").read_text() == self.BOMB
        assert "configuration_mine.py in auto_map" in result.err

    def test_it_is_not_by_default(self, run: Path, tmp_path: Path) -> None:
        result = command("deepspeed-to-hf", run, tmp_path / "out")
        assert result.code == 0 and not list((tmp_path / "out").glob("*.py"))
        assert "modeling_mine.py" in result.err and "--copy-code" in result.err
        assert "zero_to_fp32" not in result.err

    def test_nothing_is_said_where_there_is_none(self, tmp_path: Path) -> None:
        assert "copy-code" not in succeeds("deepspeed-to-hf", DEMO, tmp_path / "out").err
