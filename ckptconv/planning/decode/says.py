"""Read what stands beside weights about how they were quantised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from ckptconv.assets.config import QUANTISATION
from ckptconv.assets.find import CONFIG
from ckptconv.places.jsonfile import read_json
from ckptconv.records import dataclass

__all__ = ["Says", "read_says"]

# Files that speak of quantisation: of GPTQ and AWQ before 2024, of AutoAWQ, of ModelOpt, of llm-compressor.
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "recipe.yaml")
_MOST = 64 << 20  # bytes of a JSON file


@dataclass(frozen=True, slots=True)
class Says:
    """Hold what a model's files say of its quantisation.

    Attributes:
        method: Who quantised it, in lower case: ``fp8``, ``gptq``, ``compressed-tensors``; empty if nothing
            is said.
        values: The settings.
        origin: The file.
        dtype: The model's own type by its config.json, if it says one.
        files: Files in its folder that speak of quantisation alone.
    """

    method: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    dtype: str | None = None
    files: tuple[Path, ...] = ()

    def number(self, *names: str) -> int | None:
        """Return the first of some settings that is a whole number."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    def group_of(self, module: str) -> Mapping[str, Any]:
        """Return the settings of compressed-tensors' group a module is of (``config_groups``)."""
        groups = self.values.get("config_groups")
        found = [g for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
        for group in found if len(found) > 1 else ():
            targets = group.get("targets")
            for target in targets if isinstance(targets, list) else ():
                if _matches(str(target), module):
                    return group
        return next((g for g in found if _is_class(g.get("targets"))), found[0] if len(found) == 1 else {})


def _matches(target: str, module: str) -> bool:
    if not target.startswith("re:"):
        return target == module or ("." in target and module.endswith(f".{target}"))
    if re.search(r"\)[*+{]", target):  # repeats of repeats may never end
        return False
    try:
        return re.match(target[3:], module) is not None
    except re.error:
        return False


def _is_class(targets: object) -> bool:
    return isinstance(targets, list) and any("." not in str(t) and str(t)[:1].isupper() for t in targets)


def read_says(folders: Iterable[Path]) -> Says:
    """Read what the first of these folders that says anything does.

    Raises:
        FormatError: if a file there is not JSON.
    """
    dtype: str | None = None
    for folder in folders:
        config = _json(folder / CONFIG)
        dtype = dtype or _dtype(config)
        files = tuple(p for n in _FILES if (p := folder / n).is_file())
        for part in (config, *(v for v in config.values() if isinstance(v, Mapping))):
            for key in QUANTISATION:
                if isinstance(found := part.get(key), Mapping):
                    return Says(_method(found), found, str(folder / CONFIG), dtype, files)
        for path in files:
            if path.suffix == ".json" and (values := _beside(path)) is not None:
                return Says(_method(values), values, str(path), dtype, files)
    return Says(dtype=dtype)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_json(path, most=_MOST)
    return found if isinstance(found, dict) else {}


def _dtype(config: Mapping[str, Any]) -> str | None:
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(value := part.get(key), str):
                return value.removeprefix("torch.")
    return None


def _beside(path: Path) -> dict[str, Any] | None:
    """Read a file of its own that says how weights were quantised."""
    found = _json(path)
    if path.name == "hf_quant_config.json":
        inner = found.get("quantization")
        return {"quant_method": "modelopt", **inner} if isinstance(inner, dict) else None
    if path.name == "quantize_config.json":
        method = "awq" if str(found.get("quant_method", "")).lower() == "awq" else "gptq"
        return {**found, "quant_method": method} if "bits" in found else None
    if "w_bit" not in found:
        return None
    return {
        **found,
        "quant_method": "awq",
        "bits": found["w_bit"],
        "group_size": found.get("q_group_size", found.get("group_size")),
    }


def _method(values: Mapping[str, Any]) -> str:
    method = values.get("quant_method")
    if isinstance(method, str):
        return method.lower()
    for key, name in (("config_groups", "compressed-tensors"), ("quant_algo", "modelopt")):
        if key in values:
            return name
    if any(values.get(k) for k in ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")):
        return "bitsandbytes"
    return "of an unknown kind"
