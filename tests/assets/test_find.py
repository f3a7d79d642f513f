"""Assets are found beside the weights, in a folder, or on the hub; never half of one and half of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptconv.assets.find import tokenizer_files
from ckptconv.assets.tokenizer import collect_tokenizer
from ckptconv.errors import CkptconvError, FormatError
from running import DEMO


def test_tokenizer_files_and_nothing_else(tmp_path: Path) -> None:
    wanted = [
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken",
        "chat_template.jinja", "preprocessor_config.json",
    ]  # fmt: skip
    for name in (*wanted, "latest", "config.json", "trainer_state.json", "notes.txt", "rng_state_0.pth"):
        (tmp_path / name).write_text(name)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("x")
    (tmp_path / "vocab").mkdir()
    assert set(tokenizer_files(tmp_path)) == {*wanted, "additional_chat_templates/rag.jinja"}


def test_files_are_copied_byte_for_byte() -> None:
    found = {f.name: f.content for f in collect_tokenizer(DEMO, "run", DEMO)}
    assert found == {
        n: (DEMO / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    }


def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(FormatError, match=r"vocab\.json, merges\.txt") as caught:
        collect_tokenizer(tmp_path, "run", None)
    assert "--tokenizer" in str(caught.value.hint)


class TestHub:
    """Every way the hub can fail is an error that says so."""

    @staticmethod
    def _ask(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
        import huggingface_hub

        from ckptconv.assets import find

        def fail(*_: object, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CkptconvError) as caught:
            find._from_hub("org/model", "--config")
        assert caught.value.exit_code == 1 and caught.value.hint
        return str(caught.value)

    def test_no_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "cannot be reached" in self._ask(monkeypatch, ConnectionError("down"))

    def test_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub.errors import LocalEntryNotFoundError

        text = self._ask(monkeypatch, LocalEntryNotFoundError("not in the cache"))
        assert "cannot be reached" in text and "HF_HUB_OFFLINE" in text

    def test_no_such_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from unittest.mock import MagicMock

        from huggingface_hub.errors import RepositoryNotFoundError

        error = RepositoryNotFoundError("404 not found\nmore", response=MagicMock())
        text = self._ask(monkeypatch, error)
        assert "404 not found" in text and "cannot be reached" not in text

    def test_no_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub.errors import HFValidationError

        assert "bad name" in self._ask(monkeypatch, HFValidationError("bad name"))
