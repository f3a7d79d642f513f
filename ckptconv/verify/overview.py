"""Sum a checkpoint up: who holds what, which layers are where, how large each kind of tensor is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ckptconv.containers.stored import Stored
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.parallel import Grid
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.relations import Pair, Spec
from ckptconv.slots.entry import numbers

__all__ = [
    "grid_of",
    "holders",
    "holders_of_keys",
    "kind_of",
    "kinds",
    "layers_text",
    "overview",
    "pipeline",
    "rank_paths",
]


def overview(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint's parts are, as JSON-ready data.

    ``holders`` are the files of the ranks, or all files where there are no ranks: ``name``, ``path``,
    ``bytes``, ``tensors``, ``copies`` (bytes that repeat what another holds), and ``tp``, ``pp``, ``ep``
    where they are known. ``stages`` are the layers of each pipeline stage, ``kinds`` the sizes of each kind.
    """
    return {
        "holders": holders(checkpoint),
        "stages": {stage: list(layers) for stage, layers in checkpoint.stages.items()},
        "kinds": kinds(checkpoint.relation.right, checkpoint.relation.pairs),
    }


def grid_of(layout: Mapping[str, Any]) -> Grid | None:
    """Return the ranks a reader's ``layout`` speaks of (`Grid.describe`)."""
    if not {"tp", "pp"} <= layout.keys():
        return None
    sizes = {n: int(layout[n]) for n in ("tp", "pp", "vpp", "ep", "etp") if n in layout}
    sizes.setdefault("etp", 1 if layout.get("tp_extends_ep") else sizes["tp"])
    return Grid(**sizes, extended=bool(layout.get("tp_extends_ep")), dualpipe=bool(layout.get("dualpipev")))


def rank_paths(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the rank each file is of, by its path."""
    return {str(path): name for name, path in checkpoint.ranks.items()}


def holders(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Say what each rank holds, or each file where there are no ranks."""
    ranks = rank_paths(checkpoint)
    size, count, copies = Counter[str](), Counter[str](), Counter[str]()
    for stored in checkpoint.stored.values():
        for path, nbytes in _by_file(stored).items():
            size[path] += nbytes
            count[path] += 1
    for pair in checkpoint.relation.pairs:
        if pair.left_copy:
            stored = checkpoint.stored[pair.left.tensor]
            copies[stored.extents[0].path] += pair.left.numel * stored.dtype.itemsize
    grid = grid_of(checkpoint.layout) if ranks else None
    places = {} if grid is None else {grid.folder(r): r for r in grid.ranks()}
    found = []
    for path in ranks or size:
        name = ranks.get(path) or _short(path, checkpoint)
        place = places.get(name)
        found.append(
            {
                "name": name,
                "path": path,
                "bytes": size[path],
                "tensors": count[path],
                "copies": copies[path],
                **({} if place is None else place._asdict()),
            }
        )
    return found


def _by_file(stored: Stored) -> dict[str, int]:
    if len(stored.extents) == 1:
        return {stored.extents[0].path: stored.nbytes}
    ends = [e.start for e in stored.extents[1:]] + [stored.numel]
    found: dict[str, int] = {}
    for extent, end in zip(stored.extents, ends, strict=True):
        found[extent.path] = found.get(extent.path, 0) + (end - extent.start) * stored.dtype.itemsize
    return found


def _short(path: str, checkpoint: Checkpoint) -> str:
    for folder in (checkpoint.data, checkpoint.root):
        if path.startswith(f"{folder}/"):
            return path[len(str(folder)) + 1 :]
    return path


_LAYERS = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")


def kind_of(name: str) -> tuple[int | None, str]:
    """Split a tensor's name into its layer and what it is there; experts of a layer are of one kind."""
    match = _LAYERS.search(name)
    if match is None:
        return None, numbers(name)[0]
    return int(match[1]), numbers(name[match.end() :])[0].replace(".#.", ".*.")


def kinds(tensors: Mapping[str, Spec], pairs: Iterable[Pair] = ()) -> list[dict[str, Any]]:
    """Sum up tensors by kind, the largest first.

    Args:
        tensors: The tensors.
        pairs: Where they are from: the stored tensors that make them up (``pieces``), and repeat them
            (``copies``), are counted.
    """
    found: dict[str, dict[str, Any]] = {}
    held: dict[str, tuple[set[str], set[str]]] = {}
    for pair in pairs:
        if pair.left.numel:
            held.setdefault(pair.right.tensor, (set(), set()))[pair.left_copy].add(pair.left.tensor)
    for name, spec in tensors.items():
        layer, kind = kind_of(name)
        new = {"kind": kind, "tensors": 0, "bytes": 0, "pieces": 0, "copies": 0, "layered": layer is not None}
        one = found.setdefault(kind, new)
        one["tensors"] += 1
        pieces, copies = held.get(name, ((), ()))
        one["pieces"] += len(pieces)
        one["copies"] += len(copies)
        one["bytes"] += spec.numel * dtype_named(spec.dtype).itemsize
    return sorted(found.values(), key=lambda k: -k["bytes"])


def layers_text(layers: Iterable[int]) -> str:
    """Write numbers briefly: ``0-3, 7``."""
    runs: list[list[int]] = []
    for n in sorted(layers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


_KEY = re.compile(r"(mp_rank_\d+(?:_\d+)*):(?:model(\d+)\.)?(.*)")


def holders_of_keys(tensors: Mapping[str, Spec]) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """Say what each rank holds, from the names of its tensors (`storage.rankfile.tensor_key`) alone.

    Returns:
        What `holders` does, and the layers of each stage as the ranks number them; nothing if the names are
        none of ranks.
    """
    parts = {key: match for key in tensors if (match := _KEY.fullmatch(key)) is not None}
    if not parts or len(parts) < len(tensors):
        return [], {}
    found: dict[str, dict[str, Any]] = {}
    embeds: set[str] = set()
    local: dict[str, dict[int, set[int]]] = {}
    for key, match in parts.items():
        folder, chunk, name = match[1], int(match[2] or 0), match[3]
        one = found.setdefault(folder, {"name": folder, "bytes": 0, "tensors": 0})
        spec = tensors[key]
        one["bytes"] += spec.numel * dtype_named(spec.dtype).itemsize
        one["tensors"] += 1
        layer, _ = kind_of(name)
        held = local.setdefault(folder, {}).setdefault(chunk, set())
        if layer is not None and not name.startswith("mtp."):
            held.add(layer)
        if "word_embeddings" in name:
            embeds.add(folder)
    layers: dict[str, list[int]] = {}
    for folder, ns in Grid.numbers(list(found)).items():
        second = ns[1] if len(ns) > 1 else 0
        expert = len(ns) == 2 and len(embeds) == len(found)  # every rank embeds: there are no stages
        pp = 0 if expert else second
        found[folder] |= {"tp": ns[0], "pp": pp, "ep": second if expert else ns[2] if len(ns) > 2 else 0}
        chunks = local[folder]
        for chunk, here in chunks.items():
            layers[f"{pp}.{chunk}" if len(chunks) > 1 else str(pp)] = sorted(here)
    return list(found.values()), layers


def pipeline(holders: Iterable[Mapping[str, Any]], layers: Mapping[str, str]) -> list[dict[str, Any]]:
    """Sum up ranks by stage: ``stage``, ``layers``, ``ranks``, least and most ``tensors`` and ``bytes``.

    Args:
        holders: What `holders` returns, for ranks.
        layers: The layers of each stage or ``stage.chunk``, as text.
    """
    stages: dict[int, list[Mapping[str, Any]]] = {}
    for one in holders:
        stages.setdefault(one["pp"], []).append(one)
    rows = []
    for pp, held in sorted(stages.items()):
        texts = [text for stage, text in layers.items() if stage.partition(".")[0] == str(pp)]
        rows.append(
            {
                "stage": pp,
                "layers": " | ".join(t or "none" for t in texts),
                "ranks": len(held),
                "tensors": (min(h["tensors"] for h in held), max(h["tensors"] for h in held)),
                "bytes": (min(h["bytes"] for h in held), max(h["bytes"] for h in held)),
            }
        )
    return rows
