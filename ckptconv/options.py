"""Hold what a user may ask of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Literal

from ckptconv.readers.base import Weights
from ckptconv.writers.huggingface import Container

__all__ = ["ConvertOptions"]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Say what a conversion is to write; the defaults are the command line's.

    Attributes:
        to: The target; ``hf``.
        dtype: ``keep`` or the dtype all floating-point tensors are rounded to.
        format: ``safetensors`` or ``bin``.
        max_shard_size: The most bytes of weights per file, such as ``5GB``.
        weights: fp32 masters or the 16-bit weights the model ran with; None is the producer's default.
        tag: DeepSpeed tag instead of the one in ``latest``.
        config: Folder or hub id to take config.json from, instead of beside the checkpoint.
        tokenizer: Folder or hub id to take tokenizer files from.
        family: Name of the architecture's table instead of the config's ``model_type``.
        assets: Whether config, tokenizer and the like are written.
        drop: Glob patterns of tensors to leave out.
        rename: A file of ``old = new`` rules.
    """

    to: str = "hf"
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    format: Container = "safetensors"
    max_shard_size: str = "5GB"
    weights: Weights | None = None
    tag: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    family: str | None = None
    assets: bool = True
    drop: tuple[str, ...] = ()
    rename: str | PathLike[str] | None = None
