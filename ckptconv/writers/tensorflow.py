"""Lay out a model as transformers 4's TensorFlow classes save it: ``tf_model.h5``, or shards of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

from ckptconv.containers import hdf5_out
from ckptconv.containers.base import FileLayout
from ckptconv.containers.hdf5_out import Dataset, Node
from ckptconv.dialects.tensorflow.inverse import Placement, variables_for
from ckptconv.dialects.tensorflow.names import unscoped
from ckptconv.dialects.tensorflow.special import Model
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError, UsageError
from ckptconv.plans.checkpoint import Note
from ckptconv.plans.plan import AssetFile, OutFile
from ckptconv.plans.request import Request
from ckptconv.plans.target import Laid, Target
from ckptconv.relations import Box, Drop, Pair, Relation, Spec
from ckptconv.slots.translate import some

__all__ = ["lay_out_h5"]

_STEM: Final = "tf_model"
_MADE: Final = "TensorFlow's model makes it itself, or does not have it"
_COUNTER: Final = ".num_batches_tracked"


def lay_out_h5(request: Request, laid: Laid, max_shard_size: int) -> Target:
    """Relate torch tensors to a TensorFlow class's variables, and lay these out in files.

    The class is the TensorFlow form of the one config.json names.

    Args:
        request: What is asked for.
        laid: The model, as ``save_pretrained`` names it.
        max_shard_size: The most bytes of data a file holds, unless one tensor is larger.

    Raises:
        PlanError: if the class had no TensorFlow form, or a tensor no place in it.
        UsageError: if the class is not known, or something is to be added to weights on the way.
    """
    if laid.config is None:
        raise UsageError("--format h5 needs the model's config.json", hint="give --config")
    if request.lora is not None or request.adapter is not None or laid.adapter is not None:
        raise UsageError(
            "adapters are not merged on the way to h5",
            hint="convert to safetensors first, and that to h5",
        )
    classes = laid.config.get("architectures")
    architecture = classes[0] if isinstance(classes, list) and classes else ""
    model = Model(str(laid.config.get("model_type", "")), str(architecture))
    tensors = laid.tensors
    placements, homeless = variables_for(model, {n: s.shape for n, s in tensors.items()})
    lost = [n for n in homeless if dtype_named(tensors[n].dtype).kind == "float"]
    if lost:
        raise PlanError(
            f"TF{architecture} has no variable for {some(lost)}",
            hint="the TensorFlow class lacks what this config asks for; --format safetensors writes it all",
        )
    files, index, placed = _files(placements, tensors, max_shard_size)
    notes = []
    if others := [n for n in homeless if not n.endswith(_COUNTER)]:
        notes.append(Note("info", f"left out: {some(others)}: {_MADE}"))
    return Target(
        lambda written: files,
        _relation(placed, homeless, tensors),
        () if index is None else (index,),
        tuple(notes),
    )


def _relation(
    placed: Mapping[str, Placement], homeless: Sequence[str], tensors: Mapping[str, Spec]
) -> Relation:
    right = {key: Spec(p.shape, tensors[p.source].dtype) for key, p in placed.items()}
    pairs = [
        Pair(
            Box.whole(p.source, tensors[p.source].shape),
            Box.of(key, p.shape, order=p.order),
            right_copy=p.is_copy,
        )
        for key, p in placed.items()
        if right[key].numel
    ]
    drops = [Drop(Box.whole(n, tensors[n].shape), _MADE) for n in homeless if tensors[n].numel]
    return Relation(dict(tensors), right, tuple(pairs), tuple(drops))


def _files(
    placements: Sequence[Placement], tensors: Mapping[str, Spec], limit: int
) -> tuple[tuple[OutFile, ...], AssetFile | None, dict[str, Placement]]:
    """Divide variables over files.

    Returns:
        The files, their index, and what lies in them, by the names our reader gives what is stored.
    """
    once = [p for p in placements if not p.is_again]
    shards = _divided(once, tensors, limit)
    if len(shards) == 1:
        name = f"{_STEM}.h5"
        placed = {f"{name}/{p.layer}/{p.name}": p for p in placements}
        return (OutFile(name, "h5", _by_layer(placed, tensors)),), None, placed
    names = [f"{_STEM}-{i:05d}-of-{len(shards):05d}.h5" for i in range(1, len(shards) + 1)]
    held = {n: {f"{n}/{unscoped(p.name)}": p for p in s} for n, s in zip(names, shards, strict=True)}
    files = tuple(OutFile(n, "h5", _shard(inside, tensors)) for n, inside in held.items())
    index = {
        "metadata": {"total_size": sum(_nbytes(p, tensors) for p in once)},
        "weight_map": {p.name: n for n, inside in held.items() for p in inside.values()},
    }
    content = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    asset = AssetFile(f"{_STEM}.h5.index.json", "made from the plan", content)
    return files, asset, {key: p for inside in held.values() for key, p in inside.items()}


def _by_layer(placed: Mapping[str, Placement], tensors: Mapping[str, Spec]) -> FileLayout:
    """Lay out one file with a group a layer, as Keras 2 does (``saving/legacy/hdf5_format.py``)."""
    layers: dict[str, list[tuple[str, Placement]]] = {}
    for key, p in placed.items():
        layers.setdefault(p.layer, []).append((key, p))
    root = Node(texts={"layer_names": list(layers)}, words={"backend": "tensorflow"})
    for layer, inside in layers.items():
        node = Node(texts={"weight_names": [p.name for _, p in inside]})
        root.members[layer] = node
        for key, p in inside:
            node.put(p.name, _dataset(key, p, tensors))
    root.members.setdefault("top_level_model_weights", Node(texts={"weight_names": []}))
    return hdf5_out.layout(root)


def _shard(placed: Mapping[str, Placement], tensors: Mapping[str, Spec]) -> FileLayout:
    """Lay out a shard: datasets under their names without the scope, as transformers 4.57 does."""
    root = Node()
    names = []
    for key, p in sorted(placed.items(), key=lambda item: item[1].name):
        name = p.name if "model." in p.name else unscoped(p.name)
        root.put(name, _dataset(key, p, tensors))
        names.append(name)
    root.texts["layer_names"] = names
    return hdf5_out.layout(root)


def _dataset(key: str, placement: Placement, tensors: Mapping[str, Spec]) -> Dataset:
    return Dataset(key, dtype_named(tensors[placement.source].dtype), placement.shape)


def _nbytes(placement: Placement, tensors: Mapping[str, Spec]) -> int:
    return prod(placement.shape) * dtype_named(tensors[placement.source].dtype).itemsize


def _divided(
    placements: Sequence[Placement], tensors: Mapping[str, Spec], limit: int
) -> list[list[Placement]]:
    """Divide variables as ``tf_shard_checkpoint`` does, but for its empty first shard."""
    shards: list[list[Placement]] = [[]]
    size = 0
    for p in placements:
        n = _nbytes(p, tensors)
        if size + n > limit and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(p)
        size += n
    return shards
