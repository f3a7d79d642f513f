"""Find what a training run left of its adapter's alpha and rank, where it wrote no adapter_config.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.places.jsonfile import read_json
from ckptconv.places.yamlfile import read_yaml
from ckptconv.planning.adapters.adapter import AdapterConfig, read_config
from ckptconv.plans.checkpoint import Checkpoint

__all__ = ["find_adapter_config"]

# File -> the keys of rank and alpha; nested ones with a dot. verl 0.9 (utils/checkpoint/
# fsdp_checkpoint_manager.py); ms-swift 4 (arguments/base_args: args.json); MindFormers 2.1
# (mindformers_adapter_config.json); Megatron-Bridge 0.6 (training/config.py: run_config.yaml, ``peft``).
_FILES: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "lora_train_meta.json": (("r",), ("lora_alpha",)),
    "mindformers_adapter_config.json": (
        ("lora_config.lora_rank", "rank", "lora_rank", "r"),
        ("lora_config.lora_alpha", "alpha", "lora_alpha"),
    ),
    "args.json": (("lora_rank",), ("lora_alpha",)),
    "run_config.yaml": (("peft.dim", "peft.rank"), ("peft.alpha", "peft.lora_alpha")),
}
# A folder inside the checkpoint's in which an adapter is kept as PEFT does (verl).
_INSIDE: Final = ("lora_adapter",)


def find_adapter_config(checkpoint: Checkpoint, *folders: Path) -> AdapterConfig | None:
    """Return what says alpha and rank: PEFT's own file, else what the producer left, else the arguments.

    Args:
        checkpoint: The checkpoint with the adapter.
        folders: Where to look, nearest first.

    Raises:
        FormatError: if a file is none of its kind.
        PlanError: if the adapter is no plain LoRA.
    """
    places = list(dict.fromkeys(folders))
    found = read_config(*places, *(p / name for p in places for name in _INSIDE))
    if found is not None:
        return found
    for folder in places:
        for name, keys in _FILES.items():
            if (folder / name).is_file() and (said := _said(folder / name, keys)):
                return AdapterConfig(said, folder / name, name)
    return _arguments(checkpoint)


def _said(path: Path, keys: tuple[tuple[str, ...], tuple[str, ...]]) -> dict[str, float]:
    """Return rank and alpha as a file says them; nothing if it says no alpha."""
    read: Callable[[Path], Any] = read_yaml if path.suffix == ".yaml" else read_json
    try:
        content = read(path)
    except FormatError:
        if path.name == "args.json":  # many programs have one, of any form
            return {}
        raise
    rank, alpha = (_first(content, words) for words in keys)
    if alpha is None:
        return {}
    found = {"lora_alpha": alpha, **({"r": rank} if rank is not None else {})}
    if isinstance(content, Mapping) and content.get("use_rslora") is True:
        found["use_rslora"] = True
    return found


def _first(content: Any, words: Iterable[str]) -> float | None:
    for word in words:
        value = content
        for key in word.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if _is_number(value):
            return value  # type: ignore[no-any-return]
    return None


def _arguments(checkpoint: Checkpoint) -> AdapterConfig | None:
    """Return what training arguments say of an adapter that was trained.

    ``lora_alpha`` and ``lora_r`` of MindSpeed-LLM (c77308a1, ``features_manager/finetune/lora.py``), whose
    defaults are there in every run: without ``lora_target_modules`` they say nothing. ms-swift has
    ``lora_rank``, and ``tuner_type`` or ``train_type`` (4.0, ``megatron/arguments``).
    """
    args = checkpoint.arguments
    swift = any(args.get(k) == "lora" for k in ("tuner_type", "train_type"))
    if not args.get("lora_target_modules") and not swift:
        return None
    said = {"lora_alpha": args.get("lora_alpha"), "r": args.get("lora_rank" if swift else "lora_r")}
    numbers = {k: v for k, v in said.items() if _is_number(v)}
    if args.get("use_rslora") is True:
        numbers["use_rslora"] = True
    return AdapterConfig(numbers, checkpoint.data, "the training run") if numbers else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0
