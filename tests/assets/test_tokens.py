"""Which token ends a text is read from the tokenizer, whatever files it is told in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ckptconv.assets.tokens import token_ids
from ckptconv.plans.plan import AssetFile


def files(**contents: Any) -> list[AssetFile]:
    return [AssetFile(n.replace("__", "."), "here", json.dumps(c).encode()) for n, c in contents.items()]


@pytest.mark.parametrize(
    "held",
    [
        {
            "tokenizer_config__json": {"eos_token": "</s>"},
            "tokenizer__json": {"model": {"vocab": {"a": 0, "</s>": 2}}},
        },
        {
            "special_tokens_map__json": {"eos_token": {"content": "</s>"}},
            "tokenizer__json": {"model": {"vocab": [["a", 0.0], ["b", -1.0], ["</s>", -2.0]]}},
        },
        {
            "tokenizer_config__json": {
                "eos_token": "</s>",
                "added_tokens_decoder": {"2": {"content": "</s>"}},
            }
        },
        {"tokenizer_config__json": {"eos_token": "</s>"}, "added_tokens__json": {"</s>": 2}},
        {
            "tokenizer_config__json": {"eos_token": "</s>"},
            "vocab__json": {"</s>": 1},
            "tokenizer__json": {"added_tokens": [{"id": 2, "content": "</s>"}]},
        },
    ],
    ids=["bpe", "unigram", "decoder", "added", "tokenizer goes before vocab"],
)
def test_the_end_of_text(held: dict[str, Any]) -> None:
    assert token_ids(files(**held), 10)["eos_token_id"][0] == 2


def test_what_is_not_there_or_none_of_the_models() -> None:
    held = files(tokenizer_config__json={"eos_token": "</s>", "bos_token": None, "pad_token": "<pad>"})
    assert token_ids(held, 10) == {}
    beyond = [*held, *files(added_tokens__json={"</s>": 10, "<pad>": 9})]
    assert token_ids(beyond, 10) == {"pad_token_id": (9, "pad_token in tokenizer_config.json")}
    assert token_ids([AssetFile("tokenizer_config.json", "here", b"{")], None) == {}
