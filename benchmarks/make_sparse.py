#!/usr/bin/env python
"""Write a ZeRO-3 checkpoint of any size that takes no space: true structure, holes for data.

    python benchmarks/make_sparse.py OUT [--layers 28]

The files have the structure that deepspeed 0.19.8 writes for a Llama of hidden size 3072 on two ranks, and
torch.save writes them, but the tensors' data stays out: the file system keeps holes, which read as zeros. 28
layers are 3.0 billion parameters, 12 GB of fp32. This shows how memory grows; speed on holes means nothing.
"""

from __future__ import annotations

import argparse
import shutil
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

_RANKS = 2
_TAG = "global_step1"
_SUB_GROUP = 1_000_000_000  # DeepSpeed's default; elements of a rank
_VOCAB, _HIDDEN, _INNER, _KV = 32_000, 3072, 8192, 1024

Shapes = OrderedDict[str, torch.Size]


def shapes_of(layers: int) -> Shapes:
    """Return the parameters of the model in its own order."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (_VOCAB, _HIDDEN)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "self_attn.q_proj.weight": (_HIDDEN, _HIDDEN),
            layer + "self_attn.k_proj.weight": (_KV, _HIDDEN),
            layer + "self_attn.v_proj.weight": (_KV, _HIDDEN),
            layer + "self_attn.o_proj.weight": (_HIDDEN, _HIDDEN),
            layer + "mlp.gate_proj.weight": (_INNER, _HIDDEN),
            layer + "mlp.up_proj.weight": (_INNER, _HIDDEN),
            layer + "mlp.down_proj.weight": (_HIDDEN, _INNER),
            layer + "input_layernorm.weight": (_HIDDEN,),
            layer + "post_attention_layernorm.weight": (_HIDDEN,),
        }
    shapes |= {"model.norm.weight": (_HIDDEN,), "lm_head.weight": (_VOCAB, _HIDDEN)}
    return OrderedDict((name, torch.Size(shape)) for name, shape in shapes.items())


def sub_groups(shapes: Shapes) -> list[Shapes]:
    """Divide the parameters as stage 3 does: a group is closed when it is full."""
    groups: list[Shapes] = [OrderedDict()]
    for name, shape in shapes.items():
        if sum(_part(s) for s in groups[-1].values()) >= _SUB_GROUP:
            groups.append(OrderedDict())
        groups[-1][name] = shape
    return groups


def _part(shape: torch.Size) -> int:
    return -(-prod(shape) // _RANKS)


def main() -> None:
    """Write OUT."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    (args.out / _TAG).mkdir(parents=True)
    groups = sub_groups(shapes_of(args.layers))
    for rank in range(_RANKS):
        _save_rank(args.out / _TAG, rank, groups)
    (args.out / "latest").write_text(_TAG)


def _save_rank(folder: Path, rank: int, groups: list[Shapes]) -> None:
    about = {
        "ds_config": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}},
        "ds_version": "0.19.8",
    }
    module = OrderedDict((name, torch.empty(0, dtype=torch.bfloat16)) for g in groups for name in g)
    model_states: dict[str, Any] = {
        "module": module, "buffer_names": [], "optimizer": None, "param_shapes": groups,
        "frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": {},
        "lr_scheduler": None, "global_steps": 1, "dp_world_size": _RANKS, "mp_world_size": 1, **about,
    }  # fmt: skip
    torch.save(model_states, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    with FakeTensorMode():  # shapes without memory
        flat, first, second = (
            [torch.empty(sum(_part(s) for s in g.values())) for g in groups] for _ in range(3)
        )
    moments = {
        i: {"step": torch.tensor(1.0), "exp_avg": a, "exp_avg_sq": b}
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    }
    optimizer = {
        "zero_stage": 3, "partition_count": _RANKS, "overflow": False, "fp32_flat_groups": flat,
        "optimizer_state_dict": {"state": moments, "param_groups": [{"params": list(moments)}]},
    }  # fmt: skip
    path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"optimizer_state_dict": optimizer, **about}, path)


if __name__ == "__main__":
    main()
