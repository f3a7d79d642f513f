"""Say what a user may say about a DeepSpeed checkpoint."""

from __future__ import annotations

from ckptconv.readers.reader import Weighed
from ckptconv.records import dataclass

__all__ = ["DeepSpeedOptions"]


@dataclass(frozen=True)
class DeepSpeedOptions(Weighed):
    """Own ``--weights``."""
