"""Write a run of DeepSpeed ZeRO stage 3: two files of every rank."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.containers.torch.picklevm import Record
from ckptconv.containers.torch.torchbin import TensorRef, layout_tree
from ckptconv.dtypes import dtype
from sparse.models import parameters, write_holes

__all__ = ["write_zero3"]

_TAG = "global_step1000"
_SUB_GROUP = 1_000_000_000  # DeepSpeed's default; elements of a rank


def write_zero3(run: Path, config: Mapping[str, Any], ranks: int) -> None:
    """Write the run's folder as deepspeed 0.19.8 does, with a config.json.

    The model states of all ranks but the first are links to it: they hold placeholders alone.
    """
    folder = run / _TAG
    folder.mkdir(parents=True)
    about = {
        "ds_config": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}},
        "ds_version": "0.19.8",
    }
    shapes = parameters(config)
    groups: list[dict[str, Record]] = [OrderedDict()]
    counts = [0]
    for name, shape in shapes.items():
        if counts[-1] >= _SUB_GROUP:
            groups.append(OrderedDict())
            counts.append(0)
        groups[-1][name] = Record("torch.Size", (shape,), module="torch")
        counts[-1] += -(-prod(shape) // ranks)
    module = OrderedDict((n, TensorRef(n, dtype("bfloat16"), (0,))) for n in shapes)
    states = {
        "module": module, "buffer_names": [], "optimizer": None, "param_shapes": groups,
        "frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": {},
        "lr_scheduler": None, "global_steps": 1000, "dp_world_size": ranks, "mp_world_size": 1, **about,
    }  # fmt: skip
    first = folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    write_holes(first, layout_tree(states))
    for rank in range(1, ranks):
        os.link(first, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    optimizer = layout_tree({"optimizer_state_dict": _optimizer(counts, ranks), **about})
    for rank in range(ranks):
        write_holes(folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", optimizer)
    (run / "latest").write_text(_TAG)
    (run / "config.json").write_text(json.dumps(config, indent=2))


def _optimizer(counts: list[int], ranks: int) -> dict[str, Any]:
    def flat(name: str, i: int) -> TensorRef:
        return TensorRef(f"{name}.{i}", dtype("float32"), (counts[i],))

    moments = {
        i: {
            "step": TensorRef(f"step.{i}", dtype("float32"), ()),
            "exp_avg": flat("exp_avg", i),
            "exp_avg_sq": flat("exp_avg_sq", i),
        }
        for i in range(len(counts))
    }
    return {
        "zero_stage": 3, "partition_count": ranks, "overflow": False,
        "fp32_flat_groups": [flat("fp32", i) for i in range(len(counts))],
        "optimizer_state_dict": {"state": moments, "param_groups": [{"params": list(moments)}]},
    }  # fmt: skip
