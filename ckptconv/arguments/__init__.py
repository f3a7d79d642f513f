"""Turn training arguments into facts about a model, facts into its config.json, and both back."""

from ckptconv.arguments.config import config_from, contradictions, facts_of
from ckptconv.arguments.detect import fitting, observed
from ckptconv.arguments.facts import read_facts
from ckptconv.arguments.mindformers import read_run, run_facts
from ckptconv.arguments.reverse import arguments_from
from ckptconv.arguments.value import Fact, Facts

__all__ = [
    "Fact",
    "Facts",
    "arguments_from",
    "config_from",
    "contradictions",
    "facts_of",
    "fitting",
    "observed",
    "read_facts",
    "read_run",
    "run_facts",
]
