"""Turn training arguments into facts about a model."""

from ckptconv.facts.facts import read_facts
from ckptconv.facts.mindformers import read_run, run_facts
from ckptconv.facts.value import Fact, Facts

__all__ = [
    "Fact",
    "Facts",
    "read_facts",
    "read_run",
    "run_facts",
]
