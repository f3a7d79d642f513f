"""Read from a tokenizer's files which tokens begin and end a text, and which fills it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.places.jsonfile import parse_json
from ckptconv.plans.plan import AssetFile

__all__ = ["SPECIAL", "token_ids"]

SPECIAL: Final = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "pad_token_id": "pad_token",
}
"""Keys of config.json, and what a tokenizer calls the token (transformers 5.23)."""

_SAYS: Final = ("tokenizer_config.json", "special_tokens_map.json")


def token_ids(files: Sequence[AssetFile], rows: int | None) -> dict[str, tuple[int, str]]:
    """Return the ids of the special tokens a tokenizer names, by config.json's key, each with the file.

    Args:
        files: The tokenizer's files.
        rows: How many rows the vocabulary has; an id beyond them is none of the model's.
    """
    held = {f.name: _json(f.content) for f in files if f.name.endswith(".json")}
    ids = _vocabulary(held)
    found: dict[str, tuple[int, str]] = {}
    for key, word in SPECIAL.items():
        for name in _SAYS:
            token = held[name].get(word) if isinstance(held.get(name), dict) else None
            text = token.get("content") if isinstance(token, dict) else token
            number = ids.get(text) if isinstance(text, str) else None
            if number is not None and (rows is None or number < rows):
                found[key] = (number, f"{word} in {name}")
                break
    return found


def _vocabulary(held: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token that the files give one."""
    ids: dict[str, int] = {}
    whole = held.get("tokenizer.json")
    model = whole.get("model") if isinstance(whole, dict) else None
    for vocabulary in (held.get("vocab.json"), model.get("vocab") if isinstance(model, dict) else None):
        if isinstance(vocabulary, dict):
            ids |= {t: i for t, i in vocabulary.items() if _is_id(i)}
        elif isinstance(vocabulary, list):  # unigram: [[token, score], ...] in order
            ids |= {t[0]: i for i, t in enumerate(vocabulary) if isinstance(t, list) and t}
    if isinstance(added := held.get("added_tokens.json"), dict):
        ids |= {t: i for t, i in added.items() if _is_id(i)}
    for token in whole.get("added_tokens") or () if isinstance(whole, dict) else ():
        if isinstance(token, dict) and _is_id(token.get("id")):
            ids[str(token.get("content"))] = token["id"]
    config = held.get("tokenizer_config.json")
    decoder = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and str(number).isdigit():
            ids[str(token.get("content"))] = int(number)
    return ids


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _json(content: bytes) -> Any:
    try:
        return parse_json(content, where="a file beside the weights")
    except FormatError:
        return None
