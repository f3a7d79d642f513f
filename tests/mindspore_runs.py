"""Make MindSpore runs for tests: whole tensors cut by numpy, rank files and strategy files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_KINDS = {"float32": "Float32", "int64": "Int64", "int32": "Int32", "float16": "Float16"}


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout in MindSpore's own words: an axis of ``tensor_map`` may be a list."""

    devices: list[int]
    tensor_map: list[Any]
    step: int = 0
    size: int = 0


def cut(x: Array, layout: Layout, rank: int) -> Array:
    """Return the slice of a rank, by repeated ``np.split`` along the device axes."""
    dev = layout.devices
    place = np.unravel_index(rank, dev)
    used = set()
    for axis, entry in enumerate(layout.tensor_map):
        for t in entry if isinstance(entry, list) else [entry]:
            if t != -1:
                a = len(dev) - 1 - t
                x = np.split(x, dev[a], axis)[place[a]]
                used.add(a)
    free = [a for a in range(len(dev)) if a not in used and dev[a] > 1]
    left = math.prod(dev[a] for a in free) if layout.size == -1 else layout.size
    order: list[tuple[int, int]] = []
    for a in reversed(free):
        if left > 1:
            k = min(dev[a], left)
            order.append((int(place[a]) % k, k))
            left //= k
    for index, k in reversed(order):  # the outermost device axis cuts first
        x = np.split(x, k, 0)[index]
    return x


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + varint(value)


def message(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + varint(len(data)) + data


def ckpt(tensors: Mapping[str, Array]) -> bytes:
    out = b""
    for name, x in tensors.items():
        tensor = b"".join(number(1, n) for n in x.shape)
        tensor += message(2, _KINDS[str(x.dtype)].encode()) + message(3, x.tobytes())
        out += message(1, message(1, name.encode()) + message(2, tensor))
    return out


def dims(values: Sequence[int]) -> bytes:
    return b"".join(number(1, v) for v in values)


def layout_item(name: str, layout: Layout, *, field: int = 0) -> bytes:
    out = message(1, dims(layout.devices))
    if any(isinstance(t, list) for t in layout.tensor_map):
        for t in layout.tensor_map:
            out += message(2, dims(t if isinstance(t, list) else [t]))
    else:
        out += message(2, dims(layout.tensor_map))
    out += message(3, b"") + message(4, b"") + number(5, field)
    out += number(6, layout.step) + number(7, layout.size)
    return message(3, message(1, name.encode()) + message(2, out))


def strategy(layouts: Mapping[str, Layout], stage: int = 0) -> bytes:
    item = message(1, b"MatMul-op0") + message(2, number(1, stage) + message(2, dims([1, 1])))
    return number(1, 7) + message(2, item) + b"".join(layout_item(n, lay) for n, lay in layouts.items())


def strategy_json(layouts: Mapping[str, Layout], stage: int = 0) -> bytes:
    items = {
        name: {
            "dev_matrix": lay.devices,
            "tensor_map": lay.tensor_map,
            "field": 0,
            "opt_weight_shard_step": lay.step,
            "opt_weight_shard_size": lay.size,
        }
        for name, lay in layouts.items()
    }
    return json.dumps(
        {"current_stage": 7, "parallel_strategy_item": {"MatMul-op0": {"stage": stage}},
         "parallel_layout_item": items}
    ).encode()  # fmt: skip


def save(
    folder: Path,
    stages: Sequence[Mapping[str, Layout]],
    tensors: Mapping[str, Array],
    *,
    saves: Sequence[str] = ("2_10",),
    json_strategy: bool = False,
) -> Path:
    """Save a run: ``checkpoint/rank_N`` and ``strategy/``, each stage with the tensors of its layouts."""
    (folder / "strategy").mkdir(parents=True)
    for stage, layouts in enumerate(stages):
        ranks = math.prod(next(iter(layouts.values())).devices)
        for position in range(ranks):
            rank = stage * ranks + position
            home = folder / "checkpoint" / f"rank_{rank}"
            home.mkdir(parents=True)
            name, make = ("json", strategy_json) if json_strategy else ("ckpt", strategy)
            (folder / "strategy" / f"ckpt_strategy_rank_{rank}.{name}").write_bytes(make(layouts, stage))
            held = {n: np.ascontiguousarray(cut(tensors[n], lay, position)) for n, lay in layouts.items()}
            for step in saves:
                (home / f"llama_rank_{rank}-{step}.ckpt").write_bytes(ckpt(held))
    return folder
