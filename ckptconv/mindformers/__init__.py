"""Plan MindFormers checkpoints: settle what a source leaves open, and lay out what is written."""

from ckptconv.mindformers.source import keeps_names, reading, understood
from ckptconv.mindformers.target import lay_out, plan_merge

__all__ = ["keeps_names", "lay_out", "plan_merge", "reading", "understood"]
