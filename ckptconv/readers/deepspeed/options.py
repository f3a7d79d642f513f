"""Say what a user may say about a DeepSpeed checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ckptconv.readers.reader import Weighed

__all__ = ["DeepSpeedOptions"]


@dataclass(frozen=True)
class DeepSpeedOptions(Weighed):
    """Own ``--weights``."""
