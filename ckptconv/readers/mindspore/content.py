"""Collect what a checkpoint's files hold: weights, and what lies beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from ckptconv.containers.mindspore.mindspore import MindSporeFile
from ckptconv.containers.stored import Stored
from ckptconv.dialects.mindformers.entries import KEPT, MASTERS, STEP, beside_weights
from ckptconv.parallel.devices import Cut
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Note
from ckptconv.readers.mindspore.assemble import Holder, add_tensor
from ckptconv.records import dataclass

__all__ = ["Content", "add_whole"]


@dataclass(slots=True)
class Content:
    """What the files hold, sorted.

    Attributes:
        graph: Stored tensors, named tensors, pairs.
        left_out: Bytes beside the weights, by kind.
        steps: Entries that hold the training step.
        texts: Texts saved beside the tensors.
        deduplicated: Whether files say that replicas were left out (``remove_redundancy``).
        notes: What a user should know.
        layout: Parallel sizes.
        containers: The files read, by form.
        states: Whether states of the optimizer and of training are read as tensors.
        masters: Whether fp32 masters are, to be put in the place of weights.
    """

    graph: GraphBuilder = field(default_factory=GraphBuilder)
    left_out: Counter[str] = field(default_factory=Counter)
    steps: dict[str, Stored] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    deduplicated: bool = False
    notes: list[Note] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    containers: Counter[str] = field(default_factory=Counter)
    states: bool = False
    masters: bool = False

    def takes(self, name: str) -> bool:
        """Whether an entry is read as a tensor: a weight, or a state if these are wanted."""
        kind = beside_weights(name)
        return kind is None or (self.states and kind in KEPT) or (self.masters and kind == MASTERS)

    def weights(self, file: MindSporeFile) -> Mapping[str, Stored]:
        """Return a file's weights; note what else it holds."""
        self.graph.touch(file.path)
        self.containers[file.container] += 1
        self.deduplicated |= file.metadata.get("remove_redundancy") == "True"
        for key, text in file.strings.items():
            self.texts.setdefault(key, text)
        found = {}
        for name, stored in file.tensors.items():
            kind = beside_weights(name)
            if self.takes(name):
                found[name] = stored
            elif kind is not None:
                self.left_out[kind] += stored.nbytes
            if name in STEP and stored.numel == 1 and stored.dtype.kind == "int":
                self.steps.setdefault(name, stored)
        return found


def add_whole(content: Content, path: Path, weights: Mapping[str, Stored]) -> None:
    """Add tensors that lie whole in one file."""
    for name, stored in weights.items():
        holder = Holder(0, 0, stored)
        add_tensor(content.graph, name, [(Cut(((),) * len(stored.shape)), [holder])], str(path))
