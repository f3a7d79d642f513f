"""Copy the Python files of a model whose code is not part of transformers; they are never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.places.regular import read_bytes
from ckptconv.plans.loaded import code_of
from ckptconv.plans.plan import AssetFile

__all__ = ["collect_code"]

# What DeepSpeed copies beside its checkpoints (0.19.8, runtime/engine.py): no model's code.
_TOOLS = ("zero_to_fp32.py", "zero_to_torch.py")


def collect_code(
    folder: Path | None, config: Mapping[str, Any], origin: str, *, copy: bool
) -> tuple[list[AssetFile], list[str]]:
    """Return the ``*.py`` files of a model's folder if they are to be copied, and what a user should know.

    Args:
        folder: The folder of config.json; None if there is none.
        config: Its content; ``auto_map`` names modules that transformers would load.
        origin: The folder's name for people.
        copy: Whether they are asked for.
    """
    if folder is None:
        return [], []
    found = sorted(p for p in folder.glob("*.py") if p.is_file() and p.name not in _TOOLS)
    names = [p.name for p in found]
    if not copy:
        if not names:
            return [], []
        return [], [f"code of the model is not copied ({', '.join(names[:4])}); --copy-code does"]
    lacking = [n for n in dict.fromkeys(code_of(config)) if n not in names]
    notes = [f"config.json names {n} in auto_map, but it is not in {origin}" for n in lacking]
    return [AssetFile(p.name, origin, read_bytes(p, within=folder)) for p in found], notes
