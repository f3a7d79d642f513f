"""Lay out weights as ``save_pretrained`` does: names of files, shards, index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from typing import Literal

from ckptconv.containers.container import CONTAINERS, Container, Tensor
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.options import Choice, Size, Switch, Text, option
from ckptconv.plans.plan import AssetFile, OutFile
from ckptconv.plans.request import Request
from ckptconv.plans.target import Laid, Target
from ckptconv.records import dataclass
from ckptconv.writers.writer import Writer

__all__ = ["WRITER", "HuggingFaceOptions", "layout_weights"]

_WHAT, _ASSETS = "What is written", "Config and tokenizer"


def layout_weights(
    tensors: Sequence[Tensor], container: str, max_shard_size: int, stem: str | None = None
) -> tuple[tuple[OutFile, ...], AssetFile | None]:
    """Divide tensors over files, each at most ``max_shard_size`` bytes of data unless one tensor is larger.

    The division and the names are huggingface_hub's (2.4, ``serialization/_base.py``).

    Returns:
        The files, and the index if there is more than one.
    """
    shards = _divide(tensors, max_shard_size)
    form = _container(container)
    stem = stem or form.stem
    whole = f"{stem}.{form.name}"
    if len(shards) == 1:
        return (OutFile(whole, container, form.lay_out(shards[0])),), None
    files = tuple(
        OutFile(f"{stem}-{i:05d}-of-{len(shards):05d}.{form.name}", container, form.lay_out(shard))
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
    return files, AssetFile(f"{whole}.index.json", "made from the plan", content)


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


def _container(name: str) -> Container:
    found = CONTAINERS.find(name)
    assert found is not None, name
    return found


def _layout_adapter(tensors: Sequence[Tensor], container: str) -> OutFile:
    """Lay out the one file PEFT keeps an adapter in (peft 0.21, ``utils/constants.py``)."""
    return OutFile(f"adapter_model.{container}", container, _container(container).lay_out(tensors))


@dataclass(frozen=True, slots=True)
class HuggingFaceOptions:
    """Own what a Hugging Face model is written with."""

    format: str = option(
        Choice(("safetensors", "bin", "h5"), more=lambda: (c.name for c in CONTAINERS if c.stem)),
        "Container of the weights; h5 is for TensorFlow.",
        default="safetensors",
        panel=_WHAT,
        common=True,
    )
    max_shard_size: int = option(
        Size(), "Most bytes of weights per file; 5GB by default.", default=5 * 10**9, panel=_WHAT
    )
    dequantize: bool = option(
        Switch(),
        "Write quantised weights as values, not as codes.",
        default=False,
        panel=_WHAT,
        common=True,
    )
    quantize: Literal["fp8-block", "fp8-block-ue8m0"] | None = option(
        Choice(("fp8-block", "fp8-block-ue8m0")),
        "Quantise linear layers to FP8 in blocks of 128 x 128, as DeepSeek does; ue8m0: by powers of two.",
        panel=_WHAT,
    )
    tokenizer: str | None = option(
        Text("DIR_OR_HUB_ID"),
        "Where the tokenizer is, if not beside it.",
        panel=_ASSETS,
        common=True,
    )
    copy_code: bool = option(
        Switch(),
        "Copy the model's own *.py files from beside its config; they are never run.",
        default=False,
        panel=_ASSETS,
    )


def _lay_out(request: Request, model: Laid, like: Checkpoint | None) -> Target:
    """Lay out the files of a model, or the one of an adapter."""
    how: HuggingFaceOptions = request.writing
    if how.format == "h5":
        from ckptconv.writers.tensorflow import lay_out_h5

        return lay_out_h5(request, model, how.max_shard_size)
    tensors = [(n, dtype_named(s.dtype), s.shape) for n, s in model.tensors.items()]
    if model.adapter is not None:
        file = _layout_adapter(tensors, how.format)
        return Target(lambda written: (file,), assets=(model.adapter,))
    # A config of diffusers names its class, and its loader another file (0.36, ``utils/constants.py``).
    stem = "diffusion_pytorch_model" if model.config is not None and "_class_name" in model.config else None
    files, index = layout_weights(tensors, how.format, how.max_shard_size, stem)
    return Target(lambda written: files, assets=() if index is None else (index,))


WRITER = Writer(
    "hf",
    _lay_out,
    HuggingFaceOptions,
    takes="names",
    folder=True,
    lora=("merge", "adapter"),
    producer="huggingface",
)
