"""A family of its own, and one that has the name of one of ckptconv's."""

from dataclasses import replace

from ckptconv.families.llama import FAMILY as OWN

FAMILY = replace(OWN, name="zoo", model_types=("zoo",))
LLAMA = replace(OWN, model_types=("llama", "llama_of_the_zoo"))
