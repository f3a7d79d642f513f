"""Read a Hugging Face model folder or a ``.safetensors`` file."""

from __future__ import annotations

from pathlib import Path

from ckptconv.containers.base import FileTensor
from ckptconv.containers.safetensors import read_header
from ckptconv.containers.torch.statedict import state_dict_of
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError
from ckptconv.places.inside import is_plain_name
from ckptconv.places.jsonfile import read_json
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, ReadOptions
from ckptconv.readers.reader import Reader
from ckptconv.readers.torch_file import named_tensors

__all__ = ["READER"]

# transformers 5.23, utils/__init__.py; safetensors win where both are there, as in from_pretrained.
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def _recognise(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".safetensors" or path.name in _INDEX
    return path.is_dir() and any((path / n).is_file() for n in (*_SINGLE, *_INDEX))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = read_json(index)["weight_map"]
    except (KeyError, TypeError) as e:
        raise FormatError("the index is not JSON with a 'weight_map'", where=index) from e
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise FormatError("the 'weight_map' does not map names to files", where=index)
    for name in set(found.values()):  # in the hub's cache they are links, so the names decide
        if not is_plain_name(name):
            raise FormatError(f"the index names a file outside its folder: {name!r}", where=index)
    return found


def _tensors(path: Path) -> dict[str, FileTensor]:
    if path.suffix == ".safetensors":
        return read_header(path)[0]
    return state_dict_of(open_torch(path).root, str(path))[0]


def _open(path: Path, options: ReadOptions) -> Checkpoint:
    root = path if path.is_dir() else path.parent
    names = (
        (path.name,)
        if path.is_file()
        else tuple(n for n in (*_SINGLE[:1], *_INDEX[:1], *_SINGLE[1:], *_INDEX[1:]) if (root / n).is_file())
    )
    entry = root / names[0]
    tensors: dict[str, FileTensor] = {}
    if entry.name.endswith(".json"):
        mapped = _weight_map(entry)
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
