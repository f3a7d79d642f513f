"""Say what a checkpoint holds, and what one may do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ckptconv.api.model import Model
from ckptconv.api.model import open as open_model
from ckptconv.api.outlook import outlook
from ckptconv.numbers.sizes import size_text
from ckptconv.places.places import PathArg
from ckptconv.plans.shown import Shown
from ckptconv.records import dataclass

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Shown):
    """Hold what is known of a checkpoint.

    Attributes:
        model: Its tensors by name, which can be read.
        producer: Who wrote it.
        format: The layout in words.
        step: Training step, where known.
        layout: Parallel sizes and the like.
        weights: ``master`` or ``model``.
        parameters: How many, buffers aside.
        bytes: Those of all tensors.
        dtypes: How many tensors have which element type.
        family: The architecture; None if none is known.
        config: Where config.json is, or what it is built from; None if it has to be given.
        tokenizer: The tokenizer's folder; None if none was found.
        adapters: How many weights have a LoRA adapter beside them.
        steps: The steps of the saves in the run's folder.
        lacking: What a conversion to Hugging Face would say, if it cannot be done as it stands.
        command: What to type next.
        notes: ``(level, text)`` for people.
    """

    model: Model
    producer: str
    format: str
    step: int | None
    layout: Mapping[str, Any]
    weights: str
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    family: str | None
    config: str | None
    tokenizer: str | None
    adapters: int
    steps: tuple[int, ...]
    lacking: str | None
    command: str
    notes: tuple[tuple[str, str], ...]

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        kinds = ", ".join(f"{n} {d}" for d, n in self.dtypes.items())
        return {
            "producer": self.producer,
            "format": self.format,
            "step": self.step,
            "layout": ", ".join(f"{k} {v}" for k, v in self.layout.items()),
            "parameters": f"{self.parameters:,}",
            "tensors": f"{len(self.model):,} ({kinds}), {size_text(self.bytes)}",
            "family": self.family,
            "config": self.config or self.lacking,
            "tokenizer": self.tokenizer,
            "LoRA": f"adapters of {self.adapters:,} weights" if self.adapters else None,
        }


def inspect(path: PathArg, **fields: Any) -> Inspection:
    """Say what a checkpoint holds, from its metadata alone.

    Args:
        path: A run's folder, a step's, a Hugging Face folder, or a file inside one.
        **fields: What is said about it, as in `ckptconv.open`.

    Raises:
        CkptconvError: as `ckptconv.open` does.
    """
    model = open_model(path, **fields)
    checkpoint, specs = model.checkpoint, model.relation.right
    beside = outlook(path, checkpoint)
    return Inspection(
        model=model,
        producer=checkpoint.producer,
        format=checkpoint.format,
        step=checkpoint.iteration,
        layout=dict(checkpoint.layout),
        weights=checkpoint.weights,
        parameters=sum(s.numel for n, s in specs.items() if n not in checkpoint.buffers),
        bytes=sum(info.nbytes for info in model.values()),
        dtypes=dict(Counter(s.dtype for s in specs.values())),
        family=beside.family,
        config=beside.config,
        tokenizer=beside.tokenizer,
        adapters=beside.adapters,
        steps=tuple(beside.steps),
        lacking=beside.lacking,
        command=beside.command,
        notes=tuple((n.level, n.text) for n in checkpoint.notes),
    )
