"""Make config.json true to the weights that are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.facts.typed import typed_config
from ckptconv.places.jsonfile import read_json
from ckptconv.places.regular import read_bytes
from ckptconv.plans.plan import AssetFile, ConfigChange, Step

__all__ = ["QUANTISATION", "config_file", "generation_file", "read_config", "without_quantisation"]

QUANTISATION = ("quantization_config", "compression_config")
"""Fields of config.json, or of a config inside it, that speak of quantisation."""

_OTHER = (
    "give --config with a folder or hub id of the same architecture, or --no-assets for the weights alone"
)

_MOST: Final = 16 << 20


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json.

    Raises:
        FormatError: if it is not a JSON object.
    """
    path = folder / "config.json"
    config = read_json(path, most=_MOST, within=folder, hint=_OTHER)
    if not isinstance(config, dict):
        raise FormatError("not a JSON object", where=path, hint=_OTHER)
    return typed_config(config, path, only=("model_type", "architectures"))


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json without what speaks of quantisation."""
    return {
        k: {a: b for a, b in v.items() if a not in QUANTISATION} if isinstance(v, Mapping) else v
        for k, v in config.items()
        if k not in QUANTISATION
    }


def config_file(
    config: Mapping[str, Any],
    origin: str,
    *,
    dtype: str | None,
    tied: bool | None,
    built: bool = False,
    ids: Mapping[str, tuple[int, str]] = MappingProxyType({}),
) -> tuple[AssetFile, list[Step]]:
    """Return config.json with dtype and tie flag as written, and a step for each field that changed.

    Args:
        config: What was found.
        origin: Where.
        dtype: The dtype most weights have; None leaves the field alone.
        tied: Whether the output head is tied; None leaves the field alone.
        built: Whether the config was made from training arguments.
        ids: Special tokens by key, each with where it is from, for those the config does not know.
    """
    out = dict(config)
    steps = []
    if (elsewhere := out.pop("transformers_weights", None)) is not None:
        # transformers 5.23 (modeling_utils.py) loads the file named there instead of the one that is written.
        why = "the weights are in the files written here"
        steps.append(ConfigChange("transformers_weights", json.dumps(elsewhere), None).step(why))

    def put(key: str, value: object, why: str) -> None:
        if key not in out or out[key] != value:
            steps.append(ConfigChange(key, json.dumps(out.get(key)), json.dumps(value)).step(why))
            out[key] = value

    if "_class_name" in config:  # of diffusers, which says neither
        dtype = tied = None
    if dtype is not None:
        for key in _dtype_keys(config):
            put(key, dtype, "the dtype written")
    for key, (number, why) in ids.items():
        if out.get(key) is None:
            put(key, number, why)
    if tied is not None:
        put("tie_word_embeddings", tied, "as the weights are")
    text = json.dumps(out, indent=2, ensure_ascii=False) + "\n"
    content = text.encode(errors="backslashreplace")  # a lone surrogate in the words JSON has for it
    return AssetFile("config.json", origin, content, derived=built), steps


def _dtype_keys(config: Mapping[str, Any]) -> list[str]:
    """Return the key the config's transformers release uses: ``dtype`` since 4.56, ``torch_dtype`` before.

    A config that one release wrote and another updated may hold both.
    """
    if found := [key for key in ("torch_dtype", "dtype") if key in config]:
        return found
    version = str(config.get("transformers_version", "0")).split(".")
    numbers = [int(v) for v in version[:2] if v.isdigit()]
    return ["dtype" if numbers >= [4, 56] else "torch_dtype"]


def generation_file(folder: Path | None, config: Mapping[str, Any], origin: str) -> AssetFile | None:
    """Return generation_config.json: the one there, else what save_pretrained derives from the config.

    A model that does not generate has none.
    """
    name = "generation_config.json"
    if folder is not None and (folder / name).is_file():
        return AssetFile(name, origin, read_bytes(folder / name, most=_MOST, within=folder))
    architectures = config.get("architectures") or []
    if not any(
        str(a).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for a in architectures
    ):
        return None
    keys = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "transformers_version")
    derived = {"_from_model_config": True, **{k: config[k] for k in keys if config.get(k) is not None}}
    return AssetFile(name, "derived from config.json", (json.dumps(derived, indent=2) + "\n").encode(), True)
