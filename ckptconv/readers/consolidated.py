"""Read Meta's own checkpoints: ``consolidated.NN.pth``, a file for each model-parallel rank.

Cuts: llama-models, ``models/llama3/model.py`` (ColumnParallelLinear, RowParallelLinear,
VocabParallelEmbedding); Llama 1 and 2 cut the embedding by columns (``ParallelEmbedding``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.statedict import state_dict_of
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError
from ckptconv.facts.typed import as_whole
from ckptconv.places.jsonfile import read_json
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.options import NoOptions
from ckptconv.readers.chunks import place
from ckptconv.readers.reader import Reader

__all__ = ["READER"]

_FILE: Final = re.compile(r"consolidated\.(\d\d)\.pth")
_PARAMS: Final = "params.json"
_MOST: Final = 16 << 20  # bytes of it
# The axis that ranks cut, by the end of a name.
_CUTS: Final = (
    (re.compile(r".*\.(wq|wk|wv|w1|w3)\.weight|output\.weight"), 0),
    (re.compile(r".*\.(wo|w2)\.weight"), 1),
)
_EMBEDDING: Final = "tok_embeddings.weight"


def _ranks(folder: Path) -> dict[int, Path]:
    found = {int(m[1]): p for p in folder.iterdir() if (m := _FILE.fullmatch(p.name))}
    return dict(sorted(found.items()))


def _recognise(path: Path) -> bool:
    if path.is_file():
        return _FILE.fullmatch(path.name) is not None
    return path.is_dir() and bool(_ranks(path))


def _open(path: Path, options: NoOptions) -> Checkpoint:
    folder = path if path.is_dir() else path.parent
    files = _ranks(folder)
    absent = sorted(set(range(max(files) + 1)) - files.keys())
    if absent:
        raise PlanError(
            f"consolidated.{absent[0]:02d}.pth is missing", where=folder, hint="copy the file of every rank"
        )
    held = {rank: state_dict_of(open_torch(file).root, str(file))[0] for rank, file in files.items()}
    params = _params(folder)
    hidden = as_whole(params.get("dim"))
    _check_complete(folder, held, hidden, as_whole(params.get("n_heads")))
    graph = GraphBuilder()
    for name in held[0]:
        parts = [held[rank].get(name) for rank in held]
        if any(p is None for p in parts):
            raise PlanError(f"{name} is not in the file of every rank", where=folder)
        _add(graph, folder, name, [p for p in parts if p is not None], hidden)
    for file in files.values():
        graph.touch(file)
    return Checkpoint(
        root=folder,
        data=folder,
        producer="meta",
        format=f"consolidated.NN.pth, {len(files)} rank{'' if len(files) == 1 else 's'}",
        weights="model",
        stored=graph.stored,
        relation=graph.relation(),
        files=graph.files,
        layout={"tp": len(files)},
    )


def _params(folder: Path) -> Mapping[str, object]:
    found = read_json(folder / _PARAMS, most=_MOST, within=folder) if (folder / _PARAMS).is_file() else {}
    return found if isinstance(found, dict) else {}


def _check_complete(
    folder: Path, held: Mapping[int, Mapping[str, FileTensor]], dim: int | None, heads: int | None
) -> None:
    """Refuse the files of some ranks alone: the width of a head's rows tells how many there are."""
    norm = held[0].get("norm.weight")
    query = next((t for n, t in held[0].items() if n.endswith(".attention.wq.weight")), None)
    if dim is None or norm is None or query is None or heads is None or heads < 1:
        return
    rows = query.shape[0] * len(held)
    if query.shape[1] == dim and rows < dim:
        raise PlanError(
            f"{len(held)} of {dim // max(1, query.shape[0])} ranks are here: {rows} of {dim} rows of a query",
            where=folder,
            hint="copy consolidated.NN.pth of every rank",
        )


def _add(graph: GraphBuilder, folder: Path, name: str, parts: list[FileTensor], hidden: int | None) -> None:
    """Add a tensor that the ranks cut, or hold whole."""
    first = parts[0]
    if any(p.shape != first.shape or p.dtype != first.dtype for p in parts):
        raise FormatError(f"the ranks hold {name} in different shapes or types", where=folder)
    axis = next((a for pattern, a in _CUTS if pattern.fullmatch(name)), None)
    if name == _EMBEDDING and len(first.shape) == 2:
        axis = 0 if hidden is None or first.shape[1] == hidden else 1
    if axis is None or len(parts) == 1:
        place(graph, name, first.shape, first.dtype, [((0,) * len(first.shape), first)])
        for rank, part in enumerate(parts[1:], 1):
            whole = [((0,) * len(part.shape), part)]
            place(graph, name, part.shape, part.dtype, whole, replica=f"rank {rank}")
        return
    shape = tuple(n * len(parts) if i == axis else n for i, n in enumerate(first.shape))
    chunks = [
        (tuple(rank * n if i == axis else 0 for i, n in enumerate(part.shape)), part)
        for rank, part in enumerate(parts)
    ]
    place(graph, name, shape, first.dtype, chunks)


READER = Reader("consolidated", _recognise, _open)
