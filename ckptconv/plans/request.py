"""Hold what a user asks of a conversion, whatever the source and the target are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from ckptconv.plans.options import (
    DTYPES,
    Choice,
    Count,
    NoOptions,
    Number,
    Paths,
    Switch,
    Text,
    Texts,
    option,
)
from ckptconv.records import dataclass

__all__ = ["Request"]

_WHAT, _ASSETS = "What is written", "Config and tokenizer"


@dataclass(frozen=True, slots=True)
class Request:
    """Say what a conversion is to write; made by `ckptconv.planning.request.request_of`.

    Attributes:
        dtype: ``keep``, or the dtype all floating-point tensors are rounded to.
        drop: Glob patterns of tensors to leave out.
        keep: Glob patterns of tensors to write, and no others; ``drop`` leaves out of these.
        rename: A file of ``old = new`` rules.
        lora: What becomes of LoRA adapters; None passes them through.
        assets: Whether config, tokenizer and the like are written.
        replicas: How much of copies is compared; None compares all, or a sample where they outweigh the
            output.
        to: The target's name.
        writing: What the target is to be like: an instance of its writer's options.
        reading: What is said about the source, by the names of its reader's options.
    """

    dtype: Literal["keep", "float32", "bfloat16", "float16"] = option(
        DTYPES,
        "Round floating-point tensors; also bf16, fp16, fp32.",
        default="keep",
        panel=_WHAT,
        common=True,
    )
    drop: tuple[str, ...] = option(
        Texts(), "Leave out tensors whose name matches; may be repeated.", default=(), panel=_WHAT
    )
    keep: tuple[str, ...] = option(
        Texts(), "Write only tensors whose name matches; may be repeated.", default=(), panel=_WHAT
    )
    rename: Path | None = option(
        Paths("FILE"), "Rename tensors: 'old = new' a line, * for digits.", panel=_WHAT
    )
    lora: Literal["merge", "adapter"] | None = option(
        Choice(("merge", "adapter")),
        "Merge LoRA adapters, or write them for PEFT.",
        panel=_WHAT,
        common=True,
    )
    lora_alpha: float | None = option(
        Number(), "The adapters' alpha, where no adapter_config.json says it.", panel=_WHAT
    )
    lora_r: int | None = option(Count(1), "The adapters' rank, to be checked.", panel=_WHAT)
    adapter: Path | None = option(
        Paths("DIR"), "Merge the PEFT adapter in this folder into the weights.", panel=_WHAT
    )
    config: str | None = option(
        Text("DIR_OR_HUB_ID"),
        "Where config.json is, if not beside it.",
        panel=_ASSETS,
        common=True,
    )
    family: str | None = option(
        Text("NAME_OR_FILE"),
        "Take the architecture of this name, or the one this file defines, not the config's.",
        panel=_ASSETS,
    )
    assets: bool = option(
        Switch(), "Write the weights alone.", "--no-assets", default=True, panel=_ASSETS, off=True
    )
    vocab_size: int | None = option(
        Count(1),
        "True size of the vocabulary, where nothing else says it; rows beyond are padding.",
        panel=_ASSETS,
    )
    replicas: Literal["all", "sample", "first"] | None = option(
        Choice(("all", "sample", "first")),
        "Compare copies of a tensor whole, by a sample, or not; by default whole, by a sample where they "
        "outweigh the output.",
        panel="What is read",
    )
    to: str = "hf"
    writing: Any = field(default_factory=NoOptions)
    reading: Mapping[str, object] = field(default_factory=dict)

    def leaves_out(self, name: str) -> bool:
        """Whether a tensor is not to be written."""
        return any(fnmatchcase(name, d) for d in self.drop) or (
            bool(self.keep) and not any(fnmatchcase(name, k) for k in self.keep)
        )
