"""Read MindSpore's strategy files: how each parameter is cut over the ranks of its pipeline stage.

The files: mindspore 2.9, ``train/node_strategy_pb2.py`` (protobuf) and
``parallel/_parallel_serialization.py`` (``_build_json_strategy``, ``_convert_to_list``,
``_merge_protobuf_strategy``):

    ParallelStrategyMap  { uint32 current_stage = 1; ParallelStrategyItem = 2; ParallelLayoutItem = 3; }
    ParallelStrategyItem { string node_name = 1; ParallelStrategys = 2 { uint32 stage = 1; ... } }
    ParallelLayoutItem   { string param_name = 1; ParallelLayouts = 2; }
    ParallelLayouts      { DevMatrix = 1; TensorMap = 2; ParamSplitShape = 3; IndicesOffset = 4;
                           int32 field = 5, opt_weight_shard_step = 6, opt_weight_shard_size = 7; }

``current_stage`` is no stage; that of a rank's file is in its first strategy item. Where files of several
stages are merged, ``STAGE-`` stands before each parameter's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ckptconv.containers.mindspore.protobuf import Field, Walker, signed
from ckptconv.containers.torch.picklevm import short
from ckptconv.errors import FormatError, PlanError, UsageError
from ckptconv.parallel.devices import DeviceLayout
from ckptconv.places.jsonfile import read_json
from ckptconv.places.places import place
from ckptconv.places.regular import open_binary, read_bytes
from ckptconv.records import dataclass

__all__ = ["Strategy", "find_strategies", "map_entries", "read_strategies"]

_RANK = re.compile(r".*strategy.*_rank_(\d+).*")  # of a stem
_STAGED = re.compile(r"(\d{1,6})-(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Strategy:
    """The layouts of all parameters.

    Attributes:
        stages: Layouts by pipeline stage and parameter.
        ranks: Ranks of each stage.
        files: The files they are from.
    """

    stages: Mapping[int, Mapping[str, DeviceLayout]]
    ranks: int
    files: tuple[Path, ...]

    def stage(self, rank: int) -> int:
        """Return the pipeline stage of a rank."""
        return rank // self.ranks


def find_strategies(data: Path, given: Path | None) -> list[Path]:
    """Return the strategy files in a file or folder that was given, or beside the folder of the ranks.

    Raises:
        UsageError: if what was given holds none, or several merged files are there.
    """
    if given is not None:
        given = place(given)
        if not given.exists():
            raise UsageError("no such file or folder", where=given, hint="check --strategy")
        found = [given] if given.is_file() else _strategies_in(given, any_name=True)
        if not found:
            raise UsageError("no strategy file in this folder", where=given, hint="check --strategy")
        return found
    for base in (data, data.parent):
        for folder in (base / "strategy", base):
            if folder.is_dir() and (found := _strategies_in(folder)):
                return found
    return []


def _strategies_in(folder: Path, *, any_name: bool = False) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix in (".ckpt", ".json") and p.is_file())
    by_rank = [(int(m[1]), p) for p in files if (m := _RANK.fullmatch(p.stem))]
    if by_rank:
        return [p for _, p in sorted(by_rank)]
    found = [p for p in files if "strategy" in p.name] or (files if any_name else [])
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} merged strategy files",
            where=folder,
            hint="give --strategy, one of " + ", ".join(p.name for p in found[:8]),
        )
    return found


def read_strategies(paths: Sequence[Path]) -> Strategy:
    """Read the strategy files of one run; those of ranks of one stage may be given once or often.

    Raises:
        FormatError: if a file is not one, or cuts a parameter unevenly.
        PlanError: if two contradict each other.
    """
    stages: dict[int, dict[str, DeviceLayout]] = {}
    seen: set[bytes] = set()
    for path in paths:
        digest = sha256(read_bytes(path)).digest()  # thousands of ranks, a few contents
        if digest in seen:
            continue
        seen.add(digest)
        for stage, name, layout in _items(path):
            known = stages.setdefault(stage, {}).setdefault(name, layout)
            if known != layout:
                raise PlanError(
                    f"{name} has two layouts in stage {stage}: {known} and {layout}",
                    where=path,
                    hint="keep only the strategy files of this run",
                )
    sizes = {layout.ranks for names in stages.values() for layout in names.values()}
    if len(sizes) != 1:
        found = "no parameter" if not sizes else f"device matrices of {sorted(sizes)} ranks"
        raise FormatError(
            f"the strategy has {found}",
            where=paths[0],
            hint="give the strategy files of this run with --strategy",
        )
    return Strategy(stages, sizes.pop(), tuple(paths))


def map_entries(entries: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """Return a tensor map with each axis as a tuple; -1 and ``None`` map nothing."""
    lists = [entry if isinstance(entry, list) else [entry] for entry in entries]
    return tuple(tuple(int(t) for t in entry if t is not None and t != -1) for entry in lists)


def _items(path: Path) -> Iterator[tuple[int, str, DeviceLayout]]:
    """Yield stage, parameter and layout."""
    own, layouts = _json(path) if path.suffix == ".json" else _protobuf(path)
    for name, layout in layouts:
        staged = _STAGED.fullmatch(name)
        yield (int(staged[1]), staged[2], layout) if staged else (own, name, layout)


# protobuf

_Items = tuple[int, list[tuple[str, DeviceLayout]]]


def _protobuf(path: Path) -> _Items:
    stage: int | None = None
    layouts: list[tuple[str, DeviceLayout]] = []
    with open_binary(path) as file:
        walker = Walker(file, str(path))
        for f in walker.fields(0, walker.size):
            if f.number == 2 and f.value is None:
                stage = _stage(walker, f) if stage is None else stage
            elif f.number == 3 and f.value is None:
                layouts.append(_layout_item(walker, f))
            elif f.number != 1 or f.value is None:
                walker.fail("not a MindSpore strategy file")
    if not layouts:
        walker.fail("the strategy file has no parameter")
    return stage or 0, layouts


def _parts(walker: Walker, message: Field) -> Iterator[Field]:
    """Yield the fields of a field that is a message."""
    if message.value is not None:
        walker.fail("not a MindSpore strategy file")
    yield from walker.fields(message.start, message.start + message.size)


def _stage(walker: Walker, item: Field) -> int:
    for f in _parts(walker, item):
        if f.number == 2:
            for g in _parts(walker, f):
                if g.number == 1 and g.value is not None:
                    return g.value
    return 0


def _layout_item(walker: Walker, item: Field) -> tuple[str, DeviceLayout]:
    name: str | None = None
    layout: DeviceLayout | None = None
    for f in _parts(walker, item):
        if f.number == 1:
            name = walker.text(f)
        elif f.number == 2:
            layout = _layouts(walker, f, name or "")
    if name is None or layout is None:
        walker.fail("a parameter of the strategy file has no name or no layout")
    return name, layout


def _layouts(walker: Walker, message: Field, name: str) -> DeviceLayout:
    lists: dict[int, list[list[int]]] = {1: [], 2: [], 3: [], 4: []}
    numbers = {5: 0, 6: 0, 7: 0}
    for f in _parts(walker, message):
        if f.number in lists:
            dims = [signed(n) for g in _parts(walker, f) for n in walker.integers(g)]
            lists[f.number].append(dims)
        elif f.number in numbers and f.value is not None:
            numbers[f.number] = signed(f.value)
        else:
            walker.fail(f"{short(name)}: a layout has no field {f.number}")
    maps = lists[2]
    if len(maps) > 1:  # one for each axis: an axis may be cut by several device axes
        tensor_map: list[Any] = [m for m in maps if m]
    else:
        tensor_map = [*maps[0]] if maps else []
    uneven = numbers[5] != 0 or any(lists[3])
    return _device_layout(walker.path, name, lists[1], tensor_map, numbers[6], numbers[7], uneven)


# JSON


def _json(path: Path) -> _Items:
    try:
        content = read_json(path)
        items = content["parallel_layout_item"]
        stages = [int(s["stage"]) for s in (content.get("parallel_strategy_item") or {}).values()]
        layouts = [(name, _json_layout(path, name, item)) for name, item in items.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise FormatError("not a MindSpore strategy in JSON", where=path) from e
    return stages[0] if stages else 0, layouts


def _json_layout(path: Path, name: str, item: Mapping[str, Any]) -> DeviceLayout:
    step, size = (int(item.get(f"opt_weight_shard_{k}") or 0) for k in ("step", "size"))
    uneven = bool(item.get("field") or item.get("param_split_shape"))
    return _device_layout(str(path), name, [item["dev_matrix"]], item["tensor_map"], step, size, uneven)


def _device_layout(
    path: str, name: str, matrices: list[list[int]], tensor_map: list[Any], step: int, size: int, uneven: bool
) -> DeviceLayout:
    if uneven:
        raise FormatError(
            f"{name} is cut unevenly (field or param_split_shape), which ckptconv does not read",
            where=path,
            hint="merge the checkpoint in MindSpore first",
        )
    if len(matrices) != 1 or not all(type(n) is int and 0 < n < 1 << 32 for n in matrices[0]):
        raise FormatError(f"{name} has a device matrix that is none: {matrices}"[:300], where=path)
    if not matrices[0] or len(matrices[0]) > 32 or not -1 <= size < 1 << 32:
        raise FormatError(f"{name} has a layout that is none", where=path)
    return DeviceLayout(tuple(matrices[0]), map_entries(tensor_map), step, size)
