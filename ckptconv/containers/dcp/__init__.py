"""Read and lay out torch's distributed checkpoints."""

from typing import Final

__all__ = ["METADATA"]

METADATA: Final = ".metadata"
"""The file that is written last, and says what is in the others."""
