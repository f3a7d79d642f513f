"""Hold what single models do that the rule for names does not say, as one table.

Found by comparing the variables of all TF classes of transformers 4.57 with the tensors their torch classes
save.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from ckptconv.dialects.tensorflow.names import Variable
from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = ["Left", "Model", "settle"]


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model: ``model_type`` and class, as config.json says them; empty where unknown."""

    model_type: str = ""
    architecture: str = ""

    @property
    def is_base(self) -> bool:
        """Whether the class has no head: torch then saves its tensors without the model's own level."""
        return self.architecture.endswith("Model") and not _HEADED.search(self.architecture)


_HEADED: Final = re.compile(r"(?:LMHead|DoubleHeads|MT|SamVision)Model$")


@dataclass(frozen=True, slots=True)
class Left:
    """Say why a variable is not written, and of which tensor it is a copy, to be compared with it."""

    copy_of: str | None
    why: str


@dataclass(frozen=True, slots=True)
class _Special:
    """A rule for tensors of some models.

    Attributes:
        model_types: Of which models; every one if there is none.
        name: Their torch names by the rule, a pattern.
        becomes: The name they get, or that of the tensor they copy; None leaves them out.
        why: The reason, for people.
        copy: Whether they copy ``becomes``.
        beside: A name that must be there as well.
        classes: The end of the class's name, a pattern.
    """

    model_types: tuple[str, ...]
    name: str
    becomes: str | None
    why: str = ""
    copy: bool = False
    beside: str | None = None
    classes: str = ""


_COPY: Final = "the output matrix is tied in torch"

_TABLE: Final = (
    _Special(
        ("albert",),
        r"predictions\.bias",
        None,
        "the head adds predictions/decoder/bias and never this one",
        beside="predictions.decoder.bias",
    ),
    _Special(("albert",), r"predictions\.decoder\.bias", "predictions.bias"),
    _Special((), r"(.*pos_conv_embed\.conv)\.weight_g", r"\1.parametrizations.weight.original0"),
    _Special((), r"(.*pos_conv_embed\.conv)\.weight_v", r"\1.parametrizations.weight.original1"),
    _Special(
        ("marian",),
        r"model\.(?:encoder|decoder)\.embed_positions\.weight",
        None,
        "sinusoids that the torch model computes itself",
        classes="MTModel",
    ),
    _Special(
        ("mpnet",),
        r"mpnet\.pooler\..*",
        None,
        "a pooler that no head reads; the torch class has none",
        classes="For(?:MaskedLM|QuestionAnswering|SequenceClassification|TokenClassification)",
    ),
    _Special(
        ("mobilebert",),
        r"cls\.predictions\.decoder\.weight",
        "mobilebert.embeddings.word_embeddings.weight",
        _COPY,
        copy=True,
    ),
    _Special(("xglm",), r"lm_head\.weight", "model.embed_tokens.weight", _COPY, copy=True),
    _Special(("speech_to_text",), r"lm_head\.weight", "model.decoder.embed_tokens.weight", _COPY, copy=True),
    _Special(
        ("blip",),
        r"text_decoder\.cls\.predictions\.decoder\.weight",
        "text_decoder.bert.embeddings.word_embeddings.weight",
        _COPY,
        copy=True,
    ),
)


# Of which models, what is there, what then must be, and what it is: transformers 4.57 does not save it, as
# these classes keep layers where Keras does not look for variables.
_UNSAVED: Final = (
    (
        "idefics",
        r"(?:model\.)?vision_model\.encoder\.layers\..*",
        r"(?:model\.)?vision_model\.encoder\.layers\.\d+\.mlp\..*",
        "the MLPs of the vision tower",
    ),
    ("data2vec-vision", r"auxiliary_head\..*", r"auxiliary_head\.convs\..*", "the auxiliary head"),
)


def _refuse_unsaved(names: Collection[str], model: Model) -> None:
    for kind, there, needed, what in _UNSAVED:
        if kind != model.model_type or not any(re.fullmatch(there, n) for n in names):
            continue
        if not any(re.fullmatch(needed, n) for n in names):
            raise PlanError(
                f"the TF class of {kind} did not save {what}: the torch model would be incomplete",
                hint="the file alone does not make a model; find the torch weights it was made from",
            )


def settle(found: Mapping[str, Variable], model: Model) -> tuple[dict[str, Variable], dict[str, Left]]:
    """Apply the table, and take off the model's own level where the class has no head.

    Args:
        found: What the rule says of each variable, by its whole name.
        model: What is known of the model.

    Returns:
        The variables that are written, and those that are not; both by the variables' names.

    Raises:
        PlanError: if the TF class is known not to have saved a part, and it is not there.
    """
    names = {v.name for v in found.values()}
    _refuse_unsaved(names, model)
    prefix = _own_level(names) if model.is_base else ""
    written: dict[str, Variable] = {}
    left: dict[str, Left] = {}
    for key, variable in found.items():
        special, name = _special(variable.name, names, model)
        if special is not None and name is None:
            left[key] = Left(None, special.why)
        elif special is not None and special.copy and name in names:
            left[key] = Left(name, special.why)
        else:
            kept = variable.name if special is None or name is None or special.copy else name
            written[key] = Variable(kept.removeprefix(prefix), variable.shape, variable.order)
    return written, left


def _own_level(names: Collection[str]) -> str:
    """Return the first level with its dot if all names share it."""
    first = {n.partition(".")[0] for n in names if "." in n}
    return f"{first.pop()}." if len(first) == 1 and all("." in n for n in names) else ""


def _special(name: str, names: Collection[str], model: Model) -> tuple[_Special | None, str | None]:
    for special in _TABLE:
        if special.model_types and model.model_type not in special.model_types:
            continue
        if special.beside is not None and special.beside not in names:
            continue
        if special.classes and not re.search(f"{special.classes}$", model.architecture):
            continue
        if (match := re.fullmatch(special.name, name)) is not None:
            return special, None if special.becomes is None else match.expand(special.becomes)
    return None, None
