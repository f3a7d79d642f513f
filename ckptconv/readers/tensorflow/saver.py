"""Open a checkpoint of TensorFlow 1's saver as the torch model it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.tf1 import open_bundle
from ckptconv.dialects.tensorflow.names import Variable
from ckptconv.dialects.tensorflow.saver import family_of, saved_variables
from ckptconv.dialects.tensorflow.special import Model
from ckptconv.errors import FormatError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.readers.tensorflow.find import Found, config_of, step_of
from ckptconv.readers.tensorflow.relate import relate

__all__ = ["open_saver"]

_OBJECT: Final = "/.ATTRIBUTES/VARIABLE_VALUE"
_OPTIMIZER: Final = "of the optimizer, not of the model"


def open_saver(index: Path, path: Path) -> Checkpoint:
    """Open a checkpoint by its index; reads metadata only.

    Args:
        index: The file that ends in ``.index``.
        path: What the user named.

    Raises:
        FormatError: if the index is damaged, or of TensorFlow 2's objects.
        PlanError: if a variable is none of a model ckptconv knows.
    """
    tensors, _ = open_bundle(index)
    if any(n.endswith(_OBJECT) for n in tensors):
        raise FormatError(
            "a checkpoint of TensorFlow 2 (tf.train.Checkpoint): it names a program's objects, not variables",
            where=index,
            hint="load it in the program that made it and save it with transformers' save_pretrained",
        )
    config, _ = config_of(index.parent)
    kind = family_of(tensors)
    if not kind:
        raise FormatError(
            f"a TensorFlow 1 checkpoint of none of BERT, ELECTRA and ALBERT (the first variable is "
            f"{next(iter(tensors), 'none')!r})",
            where=index,
            hint="load it with transformers 4 and save it with save_pretrained",
        )
    if config.get("model_type") in ("bert", "electra", "albert"):
        kind = str(config["model_type"])
    classes = config.get("architectures")
    asked = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else ""
    written, left, model = saved_variables({n: t.shape for n, t in tensors.items()}, kind, asked)
    optimizer = sum(tensors[n].nbytes for n, item in left.items() if item.why == _OPTIMIZER)
    beside = {n for n, item in left.items() if item.why == _OPTIMIZER}
    graph = GraphBuilder()
    graph.touch(index)
    found = [Found(f"{index.stem}/{n}", n, "", t) for n, t in tensors.items() if n not in beside]
    notes = relate(graph, found, written, left, where=index)
    notes.append(Note("info", f"the variables are those of {model.architecture}"))
    return Checkpoint(
        root=path if path.is_dir() else index.parent,
        data=index,
        producer="tensorflow",
        format="TensorFlow 1 saver",
        weights="model",
        stored=graph.stored,
        relation=graph.relation(),
        files=graph.files,
        left_out={"optimizer states": optimizer},
        iteration=step_of(index),
        config=_config(config, model, written, tensors),
        notes=tuple(notes),
    )


def _config(
    config: Mapping[str, Any],
    model: Model,
    written: Mapping[str, Variable],
    tensors: Mapping[str, FileTensor],
) -> dict[str, Any]:
    """Return config.json: what lies beside under Google's name for it, with the class it does not say."""
    found = {**config, "model_type": model.model_type, "architectures": [model.architecture]}
    labels = next((tensors[n].shape[0] for n, v in written.items() if v.name == "classifier.weight"), 2)
    if labels != 2 and not isinstance(config.get("id2label"), dict):
        names = {str(i): f"LABEL_{i}" for i in range(min(labels, 100_000))}
        found |= {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}}
    return found
