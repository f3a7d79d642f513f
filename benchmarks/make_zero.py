#!/usr/bin/env python
"""Write a ZeRO checkpoint of any size in the structure of deepspeed 0.19.8, without deepspeed.

    python benchmarks/make_zero.py OUT --stage 2|3 --gigabytes 8      gigabytes of fp32 weights

OUT gets ``ckpt/`` and ``config.json`` of a Llama on two ranks. The fp32 masters are random bytes, and
stage 2's 16-bit weights are they, rounded; Adam's moments, which no conversion reads, are holes in the files.
fixtures/make_large.py has the real deepspeed write everything, which for 8 GB takes more than 24 GiB.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import OrderedDict
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_hf import llama, noise
from torch._subclasses.fake_tensor import FakeTensorMode

_RANKS = 2
_TAG = "global_step1"
_SUB_GROUP = 500_000_000  # elements of a rank
_BLOCK = 1 << 22
_FLOAT32 = 0xBFFF_FFFF_BFFF_FFFF
_ABOUT = {"ds_version": "0.19.8"}

Shapes = OrderedDict[str, torch.Size]


def main() -> None:
    """Write OUT."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", type=int, choices=(2, 3), default=3)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    folder = args.out / "ckpt" / _TAG
    folder.mkdir(parents=True)
    config, found = llama(args.gigabytes * 1e9 / 4)
    shapes = OrderedDict((name, torch.Size(shape)) for name, shape in found.items())
    (_stage_2 if args.stage == 2 else _stage_3)(folder, shapes)
    (args.out / "ckpt" / "latest").write_text(_TAG)
    (args.out / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2))


def _stage_3(folder: Path, shapes: Shapes) -> None:
    groups: list[Shapes] = [OrderedDict()]
    for name, shape in shapes.items():  # a group is closed when it is full
        if sum(_part(s) for s in groups[-1].values()) >= _SUB_GROUP:
            groups.append(OrderedDict())
        groups[-1][name] = shape
    sizes = [sum(_part(s) for s in g.values()) for g in groups]
    module = OrderedDict((name, torch.empty(0, dtype=torch.bfloat16)) for name in shapes)
    for rank in range(_RANKS):
        states = _model_states(module, groups, 3) | {"frozen_param_fragments": None}
        torch.save(states, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        _save_optimizer(folder, rank, "fp32_flat_groups", sizes, {"zero_stage": 3, "partition_count": _RANKS})


def _stage_2(folder: Path, shapes: Shapes) -> None:
    total = sum(map(prod, shapes.values()))
    each = -(-total // (2 * _RANKS)) * 2  # aligned to two elements a rank; stored without the padding
    with FakeTensorMode():
        module = OrderedDict((n, torch.empty(s, dtype=torch.bfloat16)) for n, s in shapes.items())
    weights = folder / "mp_rank_00_model_states.pt"
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(_model_states(module, [shapes], 2), weights)
    masters = []
    for rank in range(_RANKS):
        size = min(each, total - rank * each)
        padding = [each - size]
        about = {"zero_stage": 2, "partition_count": [_RANKS], "group_paddings": padding}
        path, offsets = _save_optimizer(folder, rank, "single_partition_of_fp32_groups", [size], about)
        masters.append(np.memmap(path, "<u4", "r", offsets[0], (size,)))
    _round(weights, shapes, masters)


def _round(weights: Path, shapes: Shapes, masters: list[np.memmap]) -> None:
    """Fill the 16-bit weights, a file's storages in the order of the parameters, with the rounded masters."""
    reader = torch._C.PyTorchFileReader(str(weights))
    rest = chain.from_iterable((m[at : at + _BLOCK] for at in range(0, len(m), _BLOCK)) for m in masters)
    block = next(rest)
    with open(weights, "r+b") as file:
        for i, shape in enumerate(shapes.values()):
            file.seek(reader.get_record_offset(f"data/{i}"))
            missing = prod(shape)
            while missing:
                block = block if len(block) else next(rest)
                part, block = block[:missing], block[missing:]
                even = part + np.uint32(0x7FFF) + ((part >> np.uint32(16)) & np.uint32(1))
                file.write((even >> np.uint32(16)).astype("<u2"))
                missing -= len(part)


def _model_states(module: Any, groups: list[Shapes], stage: int) -> dict[str, Any]:
    return {
        "module": module, "buffer_names": [], "optimizer": None, "param_shapes": groups,
        "frozen_param_shapes": None, "shared_params": {}, "lr_scheduler": None, "global_steps": 1,
        "dp_world_size": _RANKS, "mp_world_size": 1, **_settings(stage), **_ABOUT,
    }  # fmt: skip


def _settings(stage: int) -> dict[str, Any]:
    return {"ds_config": {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}}


def _save_optimizer(
    folder: Path, rank: int, key: str, sizes: list[int], about: dict[str, Any]
) -> tuple[Path, list[int]]:
    """Save masters and moments, and fill the masters, which come first in the file; return where they lie."""
    with FakeTensorMode():  # shapes without memory
        flat, first, second = ([torch.empty(n) for n in sizes] for _ in range(3))
    moments = {
        i: {"step": torch.tensor(1.0), "exp_avg": a, "exp_avg_sq": b}
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    }
    base = {"state": moments, "param_groups": [{"params": list(moments)}]}
    where = "optimizer_state_dict" if about["zero_stage"] == 3 else "base_optimizer_state"
    state = {key: flat, **about, "overflow": False, where: base, **_ABOUT}
    path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"optimizer_state_dict": state, **_settings(about["zero_stage"]), **_ABOUT}, path)
    reader = torch._C.PyTorchFileReader(str(path))
    offsets = [reader.get_record_offset(f"data/{i}") for i in range(len(sizes))]
    generator = np.random.SFC64(rank)
    with open(path, "r+b") as file:
        for offset, size in zip(offsets, sizes, strict=True):
            file.seek(offset)
            for block in noise(4 * size, _FLOAT32, generator):
                file.write(block)
    return path, offsets


def _part(shape: torch.Size) -> int:
    return -(-prod(shape) // _RANKS)


if __name__ == "__main__":
    main()
