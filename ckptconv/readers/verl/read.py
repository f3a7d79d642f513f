"""Read what verl saves of an FSDP model: one torch file a rank, of DTensors or ShardedTensors.

File names: verl 01ee5e04, ``verl/utils/checkpoint/fsdp_checkpoint_manager.py``. FSDP1 without a
device mesh gives ShardedTensors.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.readers.chunks import place
from ckptconv.readers.dcp.read import check_masters
from ckptconv.readers.dtensor import Part, Sizes, read_part
from ckptconv.readers.reader import Weighed
from ckptconv.readers.verl.find import STEP, files_of, find
from ckptconv.relations import chunk_sizes

__all__ = ["open_checkpoint"]

_BESIDE = re.compile(r"(optim|extra_state)_world_size_\d+_rank_\d+\.pt")
_KINDS = {"optim": "optimizer states", "extra_state": "scheduler and random states"}


def _assemble(graph: GraphBuilder, name: str, parts: Mapping[int, Part], folder: Path) -> None:
    """Relate the parts of all ranks to the whole tensor.

    Raises:
        PlanError: if the ranks disagree on the tensor, or their parts are not those of one mesh.
    """
    first = parts[0]
    dtype = next((p.dtype for p in parts.values() if p.dtype is not None), None)
    for rank, p in parts.items():
        same = (p.kind, p.shape, p.placements) == (first.kind, first.shape, first.placements)
        if not same or p.dtype not in (dtype, None):
            raise PlanError(
                f"{name}: ranks 0 and {rank} disagree on its shape, type or placement "
                f"({_says(first)}, {_says(p)})",
                where=folder,
                hint="the files are of different saves, or a rank saved a flat shard of its own",
            )
    if first.kind == "dtensor":
        placed = _mesh_offsets(name, parts, folder)
    elif first.kind == "sharded":
        placed = [(o, t, r) for r, p in parts.items() for o, t in p.shards if o is not None]
    else:
        placed = [((0,) * len(first.shape), p.shards[0][1], r) for r, p in parts.items()]
    copies: dict[int, list[tuple[Sizes, FileTensor]]] = defaultdict(list)
    seen = Counter[Sizes]()
    names: dict[int, int] = {}
    for offsets, tensor, rank in placed:
        if tensor.numel:
            copies[seen[offsets]].append((offsets, tensor))
            names.setdefault(seen[offsets], rank)
            seen[offsets] += 1
    if dtype is None:
        raise PlanError(f"{name}: no rank holds any of it", where=folder)
    place(graph, name, first.shape, dtype, copies.get(0, []))
    for i in range(1, len(copies)):
        place(graph, name, first.shape, dtype, copies[i], replica=f"replica_{i}_rank_{names[i]}")


def _says(part: Part) -> str:
    return f"{part.kind} {part.dtype}{list(part.shape)} {part.placements or ''}".rstrip()


def _mesh_offsets(name: str, parts: Mapping[int, Part], folder: Path) -> list[tuple[Sizes, FileTensor, int]]:
    """Return where each rank's local tensor lies in the whole, by its place in the mesh.

    Along an axis that is cut, ranks have what ``torch.chunk`` gives (``Shard._split_tensor``).
    """
    placements, shape = parts[0].placements, parts[0].shape
    coordinates = {p.coordinate for p in parts.values()}
    mesh = tuple(max(c[i] for c in coordinates) + 1 for i in range(len(placements)))
    if len(coordinates) != prod(mesh):
        raise PlanError(f"{name}: its ranks fill {len(coordinates)} of {prod(mesh)} places", where=folder)
    found = []
    for rank, p in parts.items():
        flat = 0
        for n, c in zip(mesh, p.coordinate, strict=True):
            flat = flat * n + c
        if len(p.ranks) == prod(mesh) and p.ranks[flat] != rank:
            raise PlanError(
                f"{name}: the file of rank {rank} was written by rank {p.ranks[flat]}",
                where=folder,
                hint="files were renamed or copied over each other; copy them all again",
            )
        offsets, sizes = [0] * len(shape), list(shape)
        for axis, n, c in zip(placements, mesh, p.coordinate, strict=True):
            if axis is not None:
                cut = chunk_sizes(shape[axis], n)
                offsets[axis], sizes[axis] = sum(cut[:c]), cut[c]
        local = p.shards[0][1]
        if local.shape != tuple(sizes):
            raise PlanError(
                f"{name}: rank {rank} holds {list(local.shape)} of {list(shape)}; its place in a mesh of "
                f"{list(mesh)} is {sizes}",
                where=folder,
            )
        found.append((tuple(offsets), local, rank))
    return found


def _states(files: Mapping[int, Path], notes: list[Note]) -> Iterator[tuple[int, dict[str, Part]]]:
    """Yield each rank's parts by name."""
    for rank, path in files.items():
        root = open_torch(path).root
        if type(root) is not dict:
            raise FormatError("not a state dict", where=path)
        parts, others = {}, []
        for key, value in root.items():
            part = read_part(str(key), value, path)
            if part is None or type(key) is not str:
                others.append(str(key))
            else:
                parts[key] = part
        if others and rank == 0:
            notes.append(Note("warning", f"no tensors, so left out: {', '.join(others[:8])}"))
        yield rank, parts


def open_checkpoint(path: Path, options: Weighed) -> Checkpoint:
    """Open the FSDP ranks of verl; see `ckptconv.readers.reader.Reader`."""
    found = find(path)
    if found is None:
        raise FormatError("no files of ranks found", where=path)
    folder, notes = found
    files = files_of(path, folder)
    graph = GraphBuilder()
    by_name: dict[str, dict[int, Part]] = defaultdict(dict)
    for rank, parts in _states(files, notes):
        for name, part in parts.items():
            by_name[name][rank] = part
    for name, held in by_name.items():
        absent = [r for r in files if r not in held]
        if absent:
            raise PlanError(f"{name} is not in the file of rank {absent[0]}", where=folder)
        _assemble(graph, name, held, folder)
    for file in files.values():
        graph.touch(file)
    relation = graph.relation()
    if options.weights == "master":
        notes.append(check_masters(graph, folder))
    left_out = Counter[str]()
    for p in folder.iterdir():
        if m := _BESIDE.fullmatch(p.name):
            left_out[_KINDS[m[1]]] += p.stat().st_size
    step = next((m for p in (folder, folder.parent) if (m := STEP.fullmatch(p.name))), None)
    kinds = {p.kind for held in by_name.values() for p in held.values()}
    return Checkpoint(
        # verl keeps config and tokenizer in a folder of their own beside the weights
        root=folder / "huggingface" if (folder / "huggingface").is_dir() else folder,
        data=folder,
        producer="verl",
        format="FSDP ranks" + (" (ShardedTensor)" if "sharded" in kinds else ""),
        weights="model",
        stored=graph.stored,
        relation=relation,
        files=graph.files,
        layout={"world_size": len(files)},
        iteration=int(step[1]) if step else None,
        left_out=left_out,
        notes=tuple(notes),
    )
