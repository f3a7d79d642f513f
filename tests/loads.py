"""Check that transformers loads a written folder: no parameter random, no name unused, no shape another.

Nothing is read but metadata: transformers makes the model on the meta device and matches names and shapes as
``from_pretrained`` does.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

__all__ = ["assert_loads", "is_known", "lacks"]


def is_known(folder: Path) -> bool:
    """Whether a folder holds a model of a class that transformers has, its weights not quantised."""
    path = folder / "config.json"
    if not path.is_file() or not any(folder.glob("*model*.safetensors")):
        return False
    config = json.loads(path.read_text())
    names = config.get("architectures")
    if not names or any(config.get(k) for k in ("auto_map", "quantization_config", "_class_name")):
        return False
    import transformers

    return config.get("model_type") in transformers.CONFIG_MAPPING and hasattr(transformers, names[0])


def lacks(folder: Path) -> dict[str, list[str]]:
    """Return what transformers says of a folder's names: ``missing``, ``unexpected``, ``mismatched``."""
    config = json.loads((folder / "config.json").read_text())
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            shapes |= {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    for path in sorted(folder.glob("pytorch_model*.bin")):
        held = torch.load(path, weights_only=True, mmap=True)
        shapes |= {n: tuple(t.shape) for n, t in held.items()}
    return _asked(json.dumps(config, sort_keys=True), tuple(sorted(shapes.items())))


def assert_loads(folder: Path, *, beyond: tuple[str, ...] = ()) -> None:
    """Assert that a folder is a model that transformers loads whole.

    Args:
        folder: What was written.
        beyond: Beginnings of names that the model is known to have no place for (a value head).
    """
    said = lacks(folder)
    layers = json.loads((folder / "config.json").read_text()).get("num_hidden_layers")
    ahead = f"model.layers.{layers}."  # of multi-token prediction, which transformers leaves alone
    said["unexpected"] = [n for n in said["unexpected"] if not n.startswith((*beyond, ahead))]
    assert not any(said.values()), said


@cache
def _asked(config: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, list[str]]:
    from ckptconv.assets.loading import load_on_meta

    found: dict[str, Any] = load_on_meta(json.loads(config), [dict(shapes)])[0]
    return {kind: list(found[kind]) for kind in ("missing", "unexpected", "mismatched")}
