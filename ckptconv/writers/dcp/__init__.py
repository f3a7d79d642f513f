"""Write plain PyTorch distributed checkpoints."""

from __future__ import annotations

from ckptconv.plugins import later
from ckptconv.writers.dcp.options import DcpOptions
from ckptconv.writers.writer import Writer

__all__ = ["WRITER"]

WRITER = Writer(
    "dcp",
    later("ckptconv.writers.dcp.target:lay_out"),
    DcpOptions,
    takes="names",
    folder=True,
    lora=("merge",),
    producer="dcp",
)
