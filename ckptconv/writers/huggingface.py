"""Lay out weights as ``save_pretrained`` does: names of files, shards, index."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import prod
from typing import Literal

from ckptconv.dtypes import DType
from ckptconv.errors import UsageError
from ckptconv.graph.plan import AssetFile, OutFile
from ckptconv.storage import safetensors, torchbin

__all__ = ["Container", "layout_weights", "parse_size"]

Container = Literal["safetensors", "bin"]
Tensor = tuple[str, DType, tuple[int, ...]]

# transformers 5.23, utils/__init__.py (SAFE_WEIGHTS_NAME, WEIGHTS_NAME and the names of their indexes).
_STEM = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """Read a size such as ``5GB`` (decimal, as the hub counts) or ``512MiB`` as bytes.

    Raises:
        UsageError: if it is not one.
    """
    m = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    size = int(float(m[1]) * _UNITS[m[2] or ""]) if m else 0
    if size <= 0:
        raise UsageError(f"not a size: {text!r}", hint="write 5GB, 200MB, 512MiB or a number of bytes")
    return size


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
