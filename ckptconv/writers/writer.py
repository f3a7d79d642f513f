"""Define a writer: what a target is called, what may be asked of it, and how it is laid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.options import NoOptions
from ckptconv.plans.request import Request
from ckptconv.plans.target import Laid, Target
from ckptconv.records import dataclass

__all__ = ["LayOut", "Writer"]

LayOut = Callable[[Request, Laid, Checkpoint | None], Target]


def _never(options: Any) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Writer:
    """Tie a target's name to the function that lays a model out.

    Attributes:
        name: The target, for ``--to``.
        lay_out: Decides names, files and layout from metadata alone; takes the request (whose ``writing`` is
            an instance of ``options``), the model, and the opened checkpoint that ``like`` names, if it does.
        options: A frozen dataclass whose fields are made by `ckptconv.plans.options.option`. Flags and checks
            follow from it. A field ``like`` is a path: it is opened, and handed to ``lay_out``.
        takes: ``names`` for Hugging Face's names, ``slots`` for the slots of a model.
        folder: Whether config.json and the tokenizer's files are written beside the weights.
        lora: What it can do with LoRA adapters.
        producer: The reader that reads back what it writes.
        keeps: Whether, of a source that ``producer`` reads, names and packing are kept as they are.
    """

    name: str
    lay_out: LayOut
    options: type = NoOptions
    takes: Literal["names", "slots"] = "slots"
    folder: bool = False
    lora: tuple[str, ...] = ()
    producer: str = ""
    keeps: Callable[[Any], bool] = _never
