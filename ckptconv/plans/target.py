"""Define what a writer is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from ckptconv.families import Family
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.plan import AssetFile, OutFile
from ckptconv.records import dataclass
from ckptconv.relations import Relation, Spec

__all__ = ["Laid", "Target"]


@dataclass(frozen=True, slots=True)
class Laid:
    """Hold the model that is to be laid out.

    Attributes:
        tensors: Shape and dtype by name: the names a writer takes (`Writer.takes`).
        source: Where they are from: its arguments and iteration may be taken over.
        config: The content of config.json; None where none is known or needed.
        family: Its family; None where there is no table for it.
        tied: Whether head and embedding are one; None where that cannot be said.
        adapter: adapter_config.json, where the tensors are an adapter alone.
        keeps: The tensors have the names and packing of the target's own format already.
    """

    tensors: Mapping[str, Spec]
    source: Checkpoint
    config: Mapping[str, Any] | None = None
    family: Family | None = None
    tied: bool | None = None
    adapter: AssetFile | None = None
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Hold what is to be written.

    Attributes:
        files: Makes the files once the dtypes are known; takes the tensors of the relation's right side.
        relation: The model's tensors (left) to the tensors of the files (right); None where these are the
            same.
        assets: Small files beside them.
        notes: What a user should know.
        dtypes: Element types by name of the right side, of a checkpoint that is the model for it; they hold
            unless one is asked for.
        zero_centered: Whether norms are stored without the 1 they multiply by; None as the family has them.
        as_model: Slots of norms that are nevertheless stored as the model has them.
    """

    files: Callable[[Mapping[str, Spec]], tuple[OutFile, ...]]
    relation: Relation | None = None
    assets: tuple[AssetFile, ...] = ()
    notes: tuple[Note, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    zero_centered: bool | None = None
    as_model: frozenset[str] = frozenset()
