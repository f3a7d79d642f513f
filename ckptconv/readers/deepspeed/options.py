"""Say what a user may say about a DeepSpeed checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ckptconv.readers.reader import Weighed, step_option

__all__ = ["DeepSpeedOptions"]


@dataclass(frozen=True)
class DeepSpeedOptions(Weighed):
    """Own ``--weights`` and ``--step``."""

    step: str | None = step_option()
