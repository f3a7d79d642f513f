"""Lay out weights as ``save_pretrained`` does: names of files, shards, index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from typing import Literal

from ckptconv.containers import safetensors
from ckptconv.containers.torch import torchbin
from ckptconv.dtypes import DType
from ckptconv.plans.plan import AssetFile, OutFile

__all__ = ["Container", "layout_weights"]

Container = Literal["safetensors", "bin"]
Tensor = tuple[str, DType, tuple[int, ...]]

# transformers 5.23, utils/__init__.py (SAFE_WEIGHTS_NAME, WEIGHTS_NAME and the names of their indexes).
_STEM = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}


def layout_weights(
    tensors: Sequence[Tensor], container: Container, max_shard_size: int
) -> tuple[tuple[OutFile, ...], AssetFile | None]:
    """Divide tensors over files, each at most ``max_shard_size`` bytes of data unless one tensor is larger.

    The division and the names are huggingface_hub's (2.4, ``serialization/_base.py``).

    Returns:
        The files, and the index if there is more than one.
    """
    shards = _divide(tensors, max_shard_size)
    stem, suffix = _STEM[container]
    lay = safetensors.layout if container == "safetensors" else torchbin.layout
    if len(shards) == 1:
        return (OutFile(f"{stem}.{suffix}", container, lay(shards[0])),), None
    files = tuple(
        OutFile(f"{stem}-{i:05d}-of-{len(shards):05d}.{suffix}", container, lay(shard))
        for i, shard in enumerate(shards, 1)
    )
    index = {
        "metadata": {
            "total_parameters": sum(prod(shape) for _, _, shape in tensors),
            "total_size": sum(_nbytes(t) for t in tensors),
        },
        "weight_map": {t.name: f.name for f in files for t in f.layout.tensors},
    }
    content = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return files, AssetFile(f"{stem}.{suffix}.index.json", "made from the plan", content)


def _nbytes(tensor: Tensor) -> int:
    return prod(tensor[2]) * tensor[1].itemsize


def _divide(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = []
    current: list[Tensor] = []
    size = 0
    for tensor in tensors:
        n = _nbytes(tensor)
        if n > limit:
            shards.append([tensor])
            continue
        if size + n > limit:
            shards.append(current)
            current, size = [], 0
        current.append(tensor)
        size += n
    if current or not shards:
        shards.append(current)
    return shards
