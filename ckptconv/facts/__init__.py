"""Turn training arguments into facts about a model, and facts into arguments."""

from ckptconv.facts.facts import read_facts
from ckptconv.facts.mindformers import read_run, run_facts
from ckptconv.facts.reverse import Form, arguments_from
from ckptconv.facts.value import Fact, Facts

__all__ = [
    "Fact",
    "Facts",
    "Form",
    "arguments_from",
    "read_facts",
    "read_run",
    "run_facts",
]
