"""Define a reader: how a producer's checkpoints are recognised and opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ckptconv.plans.checkpoint import Checkpoint, ReadOptions

__all__ = ["Reader"]


@dataclass(frozen=True, slots=True)
class Reader:
    """Tie a producer's name to the functions that recognise and open its checkpoints.

    Attributes:
        name: The producer.
        recognise: Whether a path looks like one of its checkpoints; cheap, looks at names only.
        open: Read the metadata.
    """

    name: str
    recognise: Callable[[Path], bool]
    open: Callable[[Path, ReadOptions], Checkpoint]
