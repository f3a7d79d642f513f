"""Open a TensorFlow model as the torch model it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptconv.dialects.tensorflow.classes import class_of
from ckptconv.dialects.tensorflow.names import torch_variable
from ckptconv.dialects.tensorflow.special import Model, settle
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.options import NoOptions
from ckptconv.readers.tensorflow.find import Found, bundle_of, config_of, variables
from ckptconv.readers.tensorflow.relate import relate
from ckptconv.readers.tensorflow.saver import open_saver
from ckptconv.readers.tensorflow.untied import part

__all__ = ["open_tensorflow"]


def open_tensorflow(path: Path, options: NoOptions) -> Checkpoint:
    """Open a model saved by transformers' TF classes or by TensorFlow 1's saver; reads metadata only.

    Args:
        path: A folder or a file in it.
        options: There are none.

    Raises:
        FormatError: if a file is damaged or of another kind.
        PlanError: if a shard is missing, or variables do not make the torch model.
    """
    if (index := bundle_of(path)) is not None:
        return open_saver(index, path)
    found, files, form = variables(path)
    root = path if path.is_dir() else path.parent
    config = config_of(root)[0]
    model = _model(config, found)
    graph = GraphBuilder()
    for file in files:
        graph.touch(file)
    rows = {f.name: torch_variable(f.name, f.tensor.shape) for f in found}
    written, left, parted = part(found, rows, *settle(rows, model), model, config)
    notes = [*relate(graph, found, written, left, where=path), *parted]
    if not model.architecture:
        notes.append(
            Note(
                "guess",
                "neither config.json nor the files say which class the model is of: taken as one with a head",
            )
        )
    return Checkpoint(
        root=root,
        data=files[0],
        producer="tensorflow",
        format=form,
        weights="model",
        stored=graph.stored,
        relation=graph.relation(),
        files=graph.files,
        config={"tie_word_embeddings": False} if parted else {},
        notes=tuple(notes),
    )


def _model(config: Mapping[str, Any], found: Iterable[Found]) -> Model:
    """Return what config.json says of the model, or else the scope of its variables."""
    kinds = config.get("architectures")
    named = next((k for k in kinds if isinstance(k, str)), "") if isinstance(kinds, list) else ""
    kind = config.get("model_type")
    scope = next((f.scope for f in found if f.scope.startswith("tf")), "")
    model_type, architecture = class_of(scope)
    return Model(kind if isinstance(kind, str) else model_type, named.removeprefix("TF") or architecture)
