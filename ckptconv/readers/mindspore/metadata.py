"""Read ``metadata.json``, in which MindFormers tells how the tensors of an iteration are cut.

The file: mindformers 1.9, ``checkpoint/metadata.py`` (``save_metadata``). ``global_offset`` is one number,
that of the slice in the order of the tensor's axes (``checkpoint/sharded_tensor.py``,
``_rank_id_with_slice_id``), although its documentation speaks of elements. Which slice a file holds follows
from the rank that stored it and the layout; the number is compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.dialects.mindformers.strategy import map_entries
from ckptconv.errors import FormatError, PlanError
from ckptconv.parallel.devices import Cut, DeviceLayout, cut
from ckptconv.places.inside import is_plain_name
from ckptconv.places.jsonfile import read_json
from ckptconv.records import dataclass

__all__ = ["Metadata", "Slice", "read_metadata"]

_SHARD = re.compile(r"""\((['"])(.+)\1, \(([\d, ]*)\)\)""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a slice lies: its file, the rank that stored it, and that rank's place in the layout."""

    file: str
    rank: int
    position: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the file tells.

    Attributes:
        shapes: The shape of each whole tensor.
        cuts: How each is cut.
        slices: Who stored which slice of each, replicas included.
    """

    shapes: Mapping[str, tuple[int, ...]]
    cuts: Mapping[str, Cut]
    slices: Mapping[str, list[Slice]]


def read_metadata(path: Path) -> Metadata:
    """Read the file.

    Raises:
        FormatError: if it is not what MindFormers writes.
        PlanError: if it contradicts itself.
    """
    try:
        content = read_json(path)
        return _metadata(path, content["state_dict_metadata"], content["storage_data"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise FormatError(f"not the metadata MindFormers writes ({e!r})"[:300], where=path) from e


def _metadata(path: Path, tensors: Mapping[str, Any], storage: Mapping[str, Any]) -> Metadata:
    shapes: dict[str, tuple[int, ...]] = {}
    cuts: dict[str, Cut] = {}
    ranks: dict[str, list[int]] = {}
    for name, entry in tensors.items():
        shapes[name] = tuple(int(n) for n in entry["global_shape"])
        layout = entry.get("layout")
        if layout is None:
            cuts[name], ranks[name] = Cut(((),) * len(shapes[name])), []
            continue
        if layout.get("interleaved_parallel"):
            raise FormatError(
                f"{name} is cut with interleaved_parallel, which ckptconv does not read", where=path
            )
        devices = tuple(int(n) for n in layout["device_matrix"])
        cuts[name] = cut(DeviceLayout(devices, map_entries(layout["tensor_map"])), len(shapes[name]), name)
        ranks[name] = [int(r) for r in layout["rank_list"]]
        if len(ranks[name]) != prod(devices):
            raise PlanError(f"{name} has {len(ranks[name])} ranks for devices {devices}", where=path)
    slices: dict[str, list[Slice]] = {name: [] for name in shapes}
    for key, holders in storage.items():
        m = _SHARD.fullmatch(key)
        if m is None or m[2] not in shapes:
            raise FormatError(f"storage_data names {key[:200]}, which is no slice of a tensor", where=path)
        name, offset = m[2], tuple(int(n) for n in m[3].split(",") if n.strip())
        for holder in holders:
            rank = int(holder["storage_rank"])
            position = _position(ranks[name], rank)
            _check_offset(path, name, shapes[name], cuts[name], position, offset)
            slices[name].append(Slice(_file(path, holder["file_name"]), rank, position))
    return Metadata(shapes, cuts, slices)


def _position(ranks: list[int], rank: int) -> int:
    """Return the place of a rank among those of a layout.

    What several pipeline stages hold has the layout of one of them; MindFormers counts the others' ranks from
    their stage's first (``checkpoint/sharded_tensor.py``, ``get_sharded_tensor_from_strategy_metadata``).
    """
    if not ranks:
        return 0
    return ranks.index(rank) if rank in ranks else rank % len(ranks)


def _check_offset(
    path: Path, name: str, shape: tuple[int, ...], cut: Cut, position: int, offset: tuple[int, ...]
) -> None:
    index, counts = cut.index(position), cut.counts
    number = 0
    for i, count in zip(index, counts, strict=True):
        number = number * count + i
    elements = tuple(i * (n // c) for i, n, c in zip(index, shape, counts, strict=True))
    if offset not in ((number,), elements):
        raise PlanError(
            f"{name}: the rank that stored it has slice {number} by its layout, {offset} by global_offset",
            where=path,
            hint="metadata.json and the layout in it do not fit together; report it",
        )


def _file(path: Path, name: object) -> str:
    if not isinstance(name, str) or not is_plain_name(name):
        raise FormatError(f"the metadata names a file outside its folder: {name!r}"[:300], where=path)
    return name if name.endswith(".safetensors") else f"{name}.safetensors"
