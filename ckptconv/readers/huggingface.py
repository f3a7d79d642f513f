"""Read a Hugging Face model folder or a ``.safetensors`` file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ckptconv.containers.base import FileTensor
from ckptconv.containers.safetensors import read_header
from ckptconv.containers.torch.statedict import state_dict_of
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.options import NoOptions
from ckptconv.readers.reader import Reader
from ckptconv.readers.tensorflow.read import open_tensorflow
from ckptconv.readers.torch_file import named_tensors
from ckptconv.readers.weight_map import read_weight_map

__all__ = ["READER"]

# transformers 5.23, utils/__init__.py; safetensors win where both are there, as in from_pretrained.
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def _recognise(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".safetensors" or path.name in _INDEX
    return path.is_dir() and any((path / n).is_file() for n in (*_SINGLE, *_INDEX))


def _tensors(path: Path) -> dict[str, FileTensor]:
    if path.suffix == ".safetensors":
        tensors, metadata = read_header(path)
        if metadata.get("format") == "flax":
            raise FormatError(
                "the file holds a Flax model: other names and other shapes than torch's",
                where=path,
                hint="load it with from_flax=True in transformers 4, and save_pretrained",
            )
        return tensors
    return state_dict_of(open_torch(path).root, str(path))[0]


def _is_tensorflow(names: Iterable[str]) -> bool:
    """Whether the names are those of TensorFlow's variables: each the first output of an operation."""
    return any(n.endswith(":0") for n in names)


def _open(path: Path, options: NoOptions) -> Checkpoint:
    root = path if path.is_dir() else path.parent
    names = (
        (path.name,)
        if path.is_file()
        else tuple(n for n in (*_SINGLE[:1], *_INDEX[:1], *_SINGLE[1:], *_INDEX[1:]) if (root / n).is_file())
    )
    entry = root / names[0]
    tensors: dict[str, FileTensor] = {}
    if entry.name.endswith(".json"):
        mapped = read_weight_map(entry)
        if _is_tensorflow(mapped):
            return open_tensorflow(path, options)
        files = sorted(set(mapped.values()))
        for name in files:
            if not (root / name).is_file():
                raise PlanError(
                    f"the shard {name} is missing", where=root, hint="copy every shard the index names"
                )
            for key, tensor in _tensors(root / name).items():
                if mapped.get(key) != name:
                    raise PlanError(
                        f"{key} lies in {name}, but the index says {mapped.get(key)}", where=entry
                    )
                tensors[key] = tensor
        missing = sorted(set(mapped) - set(tensors))
        if missing:
            raise PlanError(f"{missing[0]} is in the index, but not in {mapped[missing[0]]}", where=entry)
        tensors = {k: tensors[k] for k in mapped}
    else:
        files = [entry.name]
        tensors = _tensors(entry)
        if _is_tensorflow(tensors):
            return open_tensorflow(path, options)
    graph = GraphBuilder()
    graph.touch(entry)
    aliases = named_tensors(graph, tensors)
    kind = "safetensors" if any(f.endswith(".safetensors") for f in files) else "bin"
    return Checkpoint(
        root=root,
        data=entry,
        producer="huggingface",
        format=f"{kind}, {len(files)} file" + ("s" if len(files) > 1 else ""),
        weights="model",
        stored=graph.stored,
        relation=graph.relation(),
        files=graph.files,
        aliases=aliases,
    )


READER = Reader("huggingface", _recognise, _open)
