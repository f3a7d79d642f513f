"""Name the variables of Google's BERT, ELECTRA and ALBERT (TensorFlow 1) as transformers' torch models do.

The rules are those of transformers 4.57 (``load_tf_weights_in_bert``, ``..._in_electra``, ``..._in_albert``),
and the heads of Google's own ``run_classifier.py`` and ``run_squad.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from ckptconv.containers.torch.picklevm import short
from ckptconv.dialects.tensorflow.names import Variable
from ckptconv.dialects.tensorflow.special import Left, Model
from ckptconv.errors import PlanError

__all__ = ["family_of", "saved_variables"]

_OPTIMIZER: Final = re.compile(
    r"(?:adam_[mv]|Adam(?:_1)?|LAMB(?:_1)?|Momentum|Adafactor.*|AdamWeightDecayOptimizer(?:_1)?"
    r"|global_step|beta[12]_power|temperature)"
)
_NUMBERED: Final = re.compile(r"[A-Za-z]+_\d+")
_LAST: Final = {
    "kernel": "weight",
    "gamma": "weight",
    "output_weights": "weight",
    "beta": "bias",
    "output_bias": "bias",
}

_UNPOOLED: Final = ("ForMaskedLM", "ForQuestionAnswering")

# In this order; patterns of names.
_RENAMES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "bert": (
        (r"^(output_(?:weights|bias))$", r"classifier/\1"),
        (r"^cls/squad/", "qa_outputs/"),
    ),
    "electra": (
        ("dense_1", "dense_prediction"),
        ("generator_predictions/output_bias", "generator_lm_head/output_bias"),
    ),
    "albert": (
        ("^module/", ""),
        ("ffn_1", "ffn"),
        ("^bert/", "albert/"),
        ("attention_1", "attention"),
        ("transform/", ""),
        ("LayerNorm_1", "full_layer_layer_norm"),
        ("LayerNorm", "attention/LayerNorm"),
        ("transformer/", ""),
        ("intermediate/dense/", ""),
        ("ffn/intermediate/output/dense/", "ffn_output/"),
        ("/output/", "/"),
        ("/self/", "/"),
        ("pooler/dense", "pooler"),
        ("cls/predictions", "predictions"),
        ("predictions/attention", "predictions"),
        ("embeddings/attention", "embeddings"),
        (r"inner_group_(\d+)", r"albert_layers/\1"),
        (r"group_(\d+)", r"albert_layer_groups/\1"),
        (r"^(output_(?:weights|bias))$", r"classifier/\1"),
        ("cls/seq_relationship/", "sop_classifier/classifier/"),
        ("^cls/squad/", "qa_outputs/"),
    ),
}

# What the parts of a model are called, the class that has them all, most first.
_CLASSES: Final[Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]]] = {
    "bert": (
        ("BertForPreTraining", ("bert", "cls.predictions", "cls.seq_relationship")),
        ("BertForMaskedLM", ("bert", "cls.predictions")),
        ("BertForNextSentencePrediction", ("bert", "cls.seq_relationship")),
        ("BertForSequenceClassification", ("bert", "classifier")),
        ("BertForQuestionAnswering", ("bert", "qa_outputs")),
        ("BertModel", ("bert",)),
    ),
    "electra": (
        ("ElectraForPreTraining", ("electra", "discriminator_predictions")),
        ("ElectraForMaskedLM", ("electra", "generator_predictions", "generator_lm_head")),
        ("ElectraModel", ("electra",)),
    ),
    "albert": (
        ("AlbertForPreTraining", ("albert", "predictions", "sop_classifier")),
        ("AlbertForMaskedLM", ("albert", "predictions")),
        ("AlbertForSequenceClassification", ("albert", "classifier")),
        ("AlbertForQuestionAnswering", ("albert", "qa_outputs")),
        ("AlbertModel", ("albert",)),
    ),
}


def family_of(names: Collection[str]) -> str:
    """Return whose names these are: ``bert``, ``electra``, ``albert``; empty if of none.

    Args:
        names: The names of all variables.
    """
    if any(n.startswith(("electra/", "generator/", "discriminator_predictions/")) for n in names):
        return "electra"
    if any("/inner_group_" in n for n in names):
        return "albert"
    return "bert" if any(n.startswith("bert/") for n in names) else ""


def saved_variables(
    shapes: Mapping[str, tuple[int, ...]], kind: str, architecture: str
) -> tuple[dict[str, Variable], dict[str, Left], Model]:
    """Say what the variables of a saver's checkpoint are in torch.

    Args:
        shapes: The variables' shapes by name.
        kind: Whose names they are (`family_of`).
        architecture: The torch class wanted, as config.json says it; empty for the one that has most of them.

    Returns:
        The variables that are written, those left out and why, and the model they make.

    Raises:
        PlanError: if a name is none of that family's.
    """
    left: dict[str, Left] = {}
    named: dict[str, str] = {}
    for name in shapes:
        if any(_OPTIMIZER.fullmatch(p) for p in name.split("/")):
            left[name] = Left(None, "of the optimizer, not of the model")
        else:
            named[name] = name
    if kind == "electra":
        named, others = _one_of_two(named, architecture == "ElectraForMaskedLM")
        left |= others
    bare = {name: _torch(source, kind) for name, source in named.items()}
    classes = dict(_CLASSES[kind])
    chosen = architecture if architecture in classes else _fitting(kind, bare.values())
    parts = classes[chosen]
    prefix = f"{parts[0]}." if len(parts) == 1 else ""
    written: dict[str, Variable] = {}
    for name, found in bare.items():
        if not any(found == p or found.startswith(f"{p}.") for p in parts):
            if not any(found.startswith(f"{p}.") for _, every in _CLASSES[kind] for p in every):
                raise PlanError(
                    f"{short(name)} is no variable of {kind.upper()} that ckptconv knows",
                    hint="known are Google's own models and heads; load it in TensorFlow and save it with "
                    "transformers 4",
                )
            left[name] = Left(None, f"{chosen} does not have it")
            continue
        if ".pooler." in found and chosen.endswith(_UNPOOLED):
            left[name] = Left(None, f"a pooler that the head of {chosen} does not read")
            continue
        last = name.rpartition("/")[2]
        shape = shapes[name]
        order = tuple(range(len(shape)))[:: -1 if last == "kernel" else 1]
        written[name] = Variable(found.removeprefix(prefix), tuple(shape[a] for a in order), order)
    return written, left, Model(kind, chosen)


def _torch(name: str, kind: str) -> str:
    """Return a variable's torch name."""
    for pattern, becomes in _RENAMES[kind]:
        name = re.sub(pattern, becomes, name)
    parts = [p.replace("_", ".") if _NUMBERED.fullmatch(p) else p for p in name.split("/")]
    last = parts[-1]
    if last.endswith("_embeddings"):
        parts.append("weight")
    else:
        parts[-1] = _LAST.get(last, last)
    return ".".join(parts)


def _fitting(kind: str, names: Iterable[str]) -> str:
    """Return the first class all of whose parts are there."""
    there = list(names)
    for chosen, parts in _CLASSES[kind]:
        if all(any(n.startswith(f"{p}.") for n in there) for p in parts):
            return chosen
    raise PlanError(
        f"the variables do not make a model of {kind.upper()}", hint="copy every file of the checkpoint"
    )


def _one_of_two(named: Mapping[str, str], is_generator: bool) -> tuple[dict[str, str], dict[str, Left]]:
    """Take ELECTRA's discriminator or its generator, which share embeddings and lie in one file."""
    kept: dict[str, str] = {}
    left: dict[str, Left] = {}
    has_own = any(n.startswith("generator/embeddings/") for n in named)
    wanted = ("generator_predictions",) if is_generator else ("electra", "discriminator_predictions")
    for name in named:
        level = name.partition("/")[0]
        if is_generator and level == "electra" and name.startswith("electra/embeddings/") and not has_own:
            kept[name] = name
        elif is_generator and level == "generator":
            kept[name] = name.replace("generator/", "electra/", 1)
        elif level in wanted:
            kept[name] = name
        elif level in ("electra", "discriminator_predictions"):
            left[name] = Left(None, "of the discriminator, which config.json does not ask for")
        elif level.startswith("generator"):
            left[name] = Left(None, "of the generator, which ElectraForMaskedLM in config.json asks for")
        else:
            kept[name] = name
    return kept, left
