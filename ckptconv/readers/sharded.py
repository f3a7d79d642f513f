"""Read safetensors that ranks wrote, each its shard of every tensor, as torch's DCP does for Hugging Face.

Form: torch 2.13, ``torch/distributed/checkpoint/hf_storage.py``, ``_hf_utils.py``: the header says where
in the whole tensor each shard begins (``DCP_SHARDING_INFO``). nemo-automodel and torchtitan (``sharded/``)
leave such folders.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.safetensors import may_say, read_header
from ckptconv.errors import CkptconvError, FormatError
from ckptconv.facts.typed import as_whole
from ckptconv.places.jsonfile import parse_json
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.options import NoOptions
from ckptconv.readers.chunks import place
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

_INFO: Final = "DCP_SHARDING_INFO"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _recognise(path: Path) -> bool:
    if not path.is_dir() or not (files := _files(path)):
        return False
    try:
        return may_say(files[0], _INFO) and _INFO in read_header(files[0])[1]
    except (CkptconvError, OSError):
        return False


def _offsets(path: Path, metadata: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Return where each tensor of a file begins in the whole one."""
    said = parse_json(metadata.get(_INFO, "").encode(), where=path)
    found: dict[str, tuple[int, ...]] = {}
    for name, entry in said.items() if isinstance(said, dict) else ():
        offsets = entry.get("saved_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or any(as_whole(o) is None or o < 0 for o in offsets):
            raise FormatError(f"{_INFO} does not say where {name} begins", where=path)
        found[str(name)] = tuple(int(o) for o in offsets)
    return found


def _open(path: Path, options: NoOptions) -> Checkpoint:
    shards: dict[str, list[tuple[tuple[int, ...], FileTensor]]] = defaultdict(list)
    copies: dict[str, list[tuple[tuple[int, ...], FileTensor]]] = defaultdict(list)
    held: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
    graph = GraphBuilder()
    files = _files(path)
    for file in files:
        tensors, metadata = read_header(file)
        offsets = _offsets(file, dict(metadata))
        graph.touch(file)
        for name, tensor in tensors.items():
            begin = offsets.get(name, (0,) * len(tensor.shape))
            if len(begin) != len(tensor.shape):
                raise FormatError(f"{name} has {len(tensor.shape)} axes, but begins at {begin}", where=file)
            again = (name, begin, tensor.shape) in held
            held.add((name, begin, tensor.shape))
            (copies if again else shards)[name].append((begin, tensor))
    for name, parts in shards.items():
        first = parts[0][1]
        every = (*parts, *copies[name])
        if any(t.dtype != first.dtype or len(t.shape) != len(first.shape) for _, t in every):
            raise FormatError(f"the shards of {name} are of several types", where=path)
        shape = tuple(max(b[i] + t.shape[i] for b, t in parts) for i in range(len(first.shape)))
        place(graph, name, shape, first.dtype, parts)
        for i, copy in enumerate(copies[name], 1):
            place(graph, name, shape, first.dtype, [copy], replica=f"copy {i}")
    return Checkpoint(
        root=path,
        data=path,
        producer="dcp",
        format=f"safetensors of ranks, {len(files)} files",
        weights="model",
        stored=graph.stored,
        relation=graph.relation(),
        files=graph.files,
        near=(path / ".hf_metadata",),
    )


READER = Reader("sharded", _recognise, _open)
