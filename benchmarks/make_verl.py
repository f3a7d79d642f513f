#!/usr/bin/env python
"""Write a model as verl's FSDP workers do, a file a rank, without starting ranks.

    python benchmarks/make_verl.py OUT --gigabytes 1        gigabytes of fp32 weights, on four ranks

OUT gets ``actor/model_world_size_4_rank_0.pt`` and so on, each a state dict of DTensors cut along their first
dimension, ``actor/fsdp_config.json`` and ``actor/huggingface/config.json``: what verl 0.9.1 writes
(verl/utils/checkpoint/fsdp_checkpoint_manager.py). The weights are random bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from make_hf import describe, llama, noise
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

_RANKS = 4
_FLOAT32 = 0xBFFF_FFFF_BFFF_FFFF


def main() -> None:
    """Write OUT."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    actor = args.out / "actor"
    (actor / "huggingface").mkdir(parents=True)
    config, shapes = llama(args.gigabytes * 1e9 / 4)
    for rank in range(_RANKS):
        torch.save(_state(rank, shapes), actor / f"model_world_size_{_RANKS}_rank_{rank}.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": _RANKS}))
    describe(actor / "huggingface", {**config, "dtype": "float32"})


def _state(rank: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return what one rank holds; a process group that sends nothing says which rank it is."""
    dist.init_process_group("fake", rank=rank, world_size=_RANKS, store=FakeStore())
    mesh = init_device_mesh("cpu", (_RANKS,), mesh_dim_names=("fsdp",))
    generator = np.random.SFC64(rank)
    state = {}
    for name, shape in shapes.items():
        rows = -(-shape[0] // _RANKS)
        here = (max(0, min(rows, shape[0] - rank * rows)), *shape[1:])
        local = torch.empty(here)
        into = memoryview(local.view(-1).numpy()).cast("B")
        at = 0
        for block in noise(4 * prod(here), _FLOAT32, generator):
            into[at : at + len(block)] = block
            at += len(block)
        stride = torch.empty(shape, device="meta").stride()
        state[name] = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride
        )
    dist.destroy_process_group()
    return state


if __name__ == "__main__":
    main()
