"""Name the files that loaders read from a model's folder, and the part each plays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from re import fullmatch
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.places.jsonfile import parse_json
from ckptconv.places.regular import read_bytes

__all__ = ["LOADED", "TOKENIZER_FILES", "code_of", "is_model", "leftovers", "part_of"]

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""What save_pretrained of a tokenizer or processor writes (transformers 5.23, ``tokenization_utils_base.py``,
``processing_utils.py``), and what older and remote-code tokenizers leave; in the order people see them."""

# The names of weights: transformers 5.23, utils/__init__.py; diffusers 0.36, utils/constants.py; vLLM 0.11,
# model_executor/model_loader/default_loader.py, which reads every *.safetensors that no index leaves out.
_WEIGHTS: Final = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "diffusion_pytorch_model*.safetensors",
    "consolidated*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
    "diffusion_pytorch_model*.bin",
    "tf_model.h5.index.json",
    "tf_model.h5",
    "tf_model-*-of-*.h5",
    "flax_model.msgpack",
)
# peft 0.21, utils/constants.py: transformers puts an adapter beside a model on top of its weights.
_ADAPTER: Final = (
    "adapter_config.json",
    "adapter_model.safetensors.index.json",
    "adapter_model*.safetensors",
    "adapter_model*.bin",
)
# What AutoGPTQ, AutoAWQ and ModelOpt write beside a model, and loaders take for its quantisation.
_QUANTISED: Final = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")

LOADED: Final[Mapping[str, tuple[str, ...]]] = {
    "config": ("config.json", "generation_config.json"),
    "weights": _WEIGHTS,
    "adapter": _ADAPTER,
    "quantisation": _QUANTISED,
    "tokenizer": TOKENIZER_FILES,
}
"""Patterns of names by the part the files play."""


def part_of(name: str) -> str | None:
    """Return the part that a file plays for loaders, a key of `LOADED` or ``code``; None if it plays none."""
    found = (part for part, patterns in LOADED.items() if any(fnmatchcase(name, p) for p in patterns))
    plain = "/" not in name
    return next(found, "code" if plain and name.endswith(".py") else None)


def is_model(names: Collection[str]) -> bool:
    """Whether files are those of a model or an adapter that transformers, diffusers or PEFT load."""
    return any(part_of(n) in ("weights", "adapter") for n in names)


def code_of(config: Any) -> Iterator[str]:
    """Yield the ``*.py`` files beside the config that its ``auto_map`` names.

    ``repo--module.Class`` is elsewhere. Its form: transformers 5.23, ``dynamic_module_utils.py``
    (``get_class_from_dynamic_module``).
    """
    auto_map = config.get("auto_map") if isinstance(config, Mapping) else None
    for value in auto_map.values() if isinstance(auto_map, Mapping) else ():
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str) and (match := fullmatch(r"(\w+)\.\w+", reference)):
                yield f"{match[1]}.py"


def leftovers(folder: Path, names: Collection[str], config: bytes | None = None) -> list[str]:
    """List the files of an old model in a folder that loaders would read as parts of a new one.

    Args:
        folder: Where the old model is and the new one goes.
        names: The files of the new one.
        config: The content of its config.json, if it has one.
    """
    if not is_model(names):
        return []
    codes = [_json(config)] if config is not None else []
    if (folder / "config.json").is_file():
        codes.append(_json(read_bytes(folder / "config.json", within=folder)))
    patterns = [p for patterns in LOADED.values() for p in patterns]
    patterns += [name for found in codes for name in code_of(found)]
    there = [PurePosixPath(p.relative_to(folder)).as_posix() for q in patterns for p in folder.glob(q)]
    return [n for n in dict.fromkeys(there) if n not in names]


def _json(content: bytes) -> Any:
    try:
        return parse_json(content, where="a file beside the weights")
    except FormatError:
        return None
