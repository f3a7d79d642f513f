"""Turn training arguments into facts about a model, facts into its config.json, and both back."""

from ckptconv.facts.facts import read_facts
from ckptconv.facts.mindformers import read_run, run_facts
from ckptconv.facts.reverse import arguments_from
from ckptconv.facts.value import Fact, Facts

__all__ = [
    "Fact",
    "Facts",
    "arguments_from",
    "read_facts",
    "read_run",
    "run_facts",
]
