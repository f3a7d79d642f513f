"""Own what may be said about a TensorFlow model."""

from __future__ import annotations

from dataclasses import dataclass

from ckptconv.plans.options import Count
from ckptconv.readers.reader import step_option

__all__ = ["TensorFlowOptions"]


@dataclass(frozen=True, slots=True)
class TensorFlowOptions:
    """Own what tells one checkpoint of a run of TensorFlow 1 from the others."""

    step: int | None = step_option(Count())
