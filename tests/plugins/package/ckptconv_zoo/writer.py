"""A target: all tensors in one file, under the names of Hugging Face in upper case."""

from dataclasses import dataclass

from ckptconv.dtypes import dtype
from ckptconv.plans.options import Choice, option
from ckptconv.plans.plan import OutFile
from ckptconv.plans.target import Target
from ckptconv.relations import Relation, renamed
from ckptconv.writers.writer import Writer
from ckptconv_zoo.container import lay_out


@dataclass(frozen=True)
class ZooOptions:
    letters: str = option(Choice(("upper", "lower")), "How names are written.", default="upper")


def lay_out_zoo(request, model, like):
    changed = str.upper if request.writing.letters == "upper" else str.lower
    relation = Relation.union(renamed(n, changed(n), s) for n, s in model.tensors.items())

    def files(tensors):
        listed = [(n, dtype(s.dtype), s.shape) for n, s in tensors.items()]
        return (OutFile("model.zoo", "zoo", lay_out(listed)),)

    return Target(files, relation)


WRITER = Writer("zoo", lay_out_zoo, ZooOptions, takes="names", producer="zoo")
