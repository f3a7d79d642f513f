"""config.json stays what it was, but for dtype and tie flag, which are true to the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckptconv.assets.config import config_file, generation_file, read_config
from ckptconv.errors import FormatError


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"torch_dtype": "float16"}, "torch_dtype"),
        ({"transformers_version": "4.55.9"}, "torch_dtype"),
        ({"transformers_version": "4.56.0.dev0"}, "dtype"),
        ({"transformers_version": "5.0"}, "dtype"),
        ({}, "torch_dtype"),
    ],
)
def test_dtype_is_written_under_the_key_the_release_reads(config: dict[str, Any], key: str) -> None:
    asset, steps = config_file(config, "run", dtype="bfloat16", tied=None)
    assert json.loads(asset.content) == {**config, key: "bfloat16"}
    assert [s.kind for s in steps] == ["config"] and key in steps[0].what and "bfloat16" in steps[0].what


def test_what_is_right_is_no_step() -> None:
    config = {"dtype": "float32", "tie_word_embeddings": True, "name": "\u6a21\u578b"}
    asset, steps = config_file(config, "run", dtype="float32", tied=True)
    assert not steps and json.loads(asset.content) == config
    assert asset.origin == "run" and asset.name == "config.json"


def test_order_is_kept_and_text_stays_text() -> None:
    config = {"z": 1, "a": "\u6a21\u578b", "dtype": "float32"}
    asset, _ = config_file(config, "run", dtype="float16", tied=False)
    assert list(json.loads(asset.content)) == ["z", "a", "dtype", "tie_word_embeddings"]
    assert "\u6a21\u578b" in asset.content.decode()


def test_the_given_config_is_not_changed() -> None:
    config = {"dtype": "float32"}
    config_file(config, "run", dtype="float16", tied=True)
    assert config == {"dtype": "float32"}


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b"3", b"\xff", b"[" * 200_000])
def test_what_is_no_config_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_config(tmp_path)
    assert caught.value.where == str(tmp_path / "config.json") and "--config" in str(caught.value.hint)


class TestGenerationConfig:
    def test_the_one_that_is_there_is_copied(self, tmp_path: Path) -> None:
        (tmp_path / "generation_config.json").write_bytes(b'{ "top_k":3 }')
        asset = generation_file(tmp_path, {}, "run")
        assert asset is not None and asset.content == b'{ "top_k":3 }' and asset.origin == "run"

    def test_one_is_derived_for_a_model_that_generates(self, tmp_path: Path) -> None:
        config = {
            "architectures": ["GPT2LMHeadModel"],
            "eos_token_id": [1, 2],
            "bos_token_id": 0,
            "pad_token_id": None,
        }
        asset = generation_file(tmp_path, config, "run")
        assert asset is not None
        assert json.loads(asset.content) == {
            "_from_model_config": True,
            "bos_token_id": 0,
            "eos_token_id": [1, 2],
        }

    @pytest.mark.parametrize("architectures", [None, [], ["LlamaForSequenceClassification"], ["BertModel"]])
    def test_none_for_a_model_that_does_not(self, tmp_path: Path, architectures: list[str] | None) -> None:
        assert generation_file(tmp_path, {"architectures": architectures}, "run") is None


def test_a_config_with_both_dtype_fields_has_both_made_true() -> None:
    config = {"model_type": "llama", "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    asset, steps = config_file(config, "test", dtype="float32", tied=None)
    assert asset.content is not None
    written = json.loads(asset.content)
    assert (written["dtype"], written["torch_dtype"]) == ("float32", "float32")
    assert len(steps) == 2
