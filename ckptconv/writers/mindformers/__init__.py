"""Write MindFormers checkpoints: one file, or one a rank."""

from __future__ import annotations

from ckptconv.plugins import later
from ckptconv.writers.mindformers.options import MindFormersTarget
from ckptconv.writers.writer import Writer

__all__ = ["WRITER"]

WRITER = Writer(
    "mindformers",
    later("ckptconv.writers.mindformers.target:lay_out"),
    MindFormersTarget,
    producer="mindspore",
    keeps=lambda how: how.may_keep,
)
