"""Locate the masters of a universal checkpoint: a folder per parameter under ``zero/``.

Layout: deepspeed 0.19.8, ``checkpoint/ds_to_universal.py``. From stage 1 and 2 ``fp32.pt`` holds
``{"param": tensor, "cat_dim": ...}``, from stage 3 a bare tensor, often flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import concatenated
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.errors import FormatError, PlanError
from ckptconv.plans.builder import GraphBuilder
from ckptconv.readers.deepspeed.masters import Master
from ckptconv.readers.deepspeed.states import ModelRank, as_dict
from ckptconv.relations import Box

__all__ = ["is_scrambled", "universal_masters"]


def is_scrambled(rank: ModelRank) -> bool:
    """Whether the run shuffled its partitions, which ds_to_universal overlooks.

    It walks the parameters in module order although ``round_robin_gradients`` of stage 1 and 2 laid them out
    in another (0.19.8, ``stage_1_and_2.py``), so that the names of most parameters hold pieces of others.
    """
    zero = as_dict(as_dict(rank.head.get("ds_config")).get("zero_optimization"))
    return bool(zero.get("round_robin_gradients")) and zero.get("stage") in (1, 2)


def universal_masters(zero: Path, rank: ModelRank, graph: GraphBuilder) -> dict[str, Master]:
    """Locate the masters.

    Args:
        zero: The folder ``zero``.
        rank: The model states beside it.
        graph: Receives the stored tensors.

    Raises:
        FormatError: if a parameter's file holds no tensor.
        PlanError: if a scrambled run cannot be put in order again.
    """
    found: dict[str, FileTensor] = {}
    wrapped: dict[str, bool] = {}
    for folder in sorted(p for p in zero.iterdir() if p.is_dir()):
        path = folder / "fp32.pt"
        if not path.is_file():
            raise FormatError(f"no fp32.pt for parameter {folder.name}", where=folder)
        root = open_torch(path).root
        tensor = root.get("param") if isinstance(root, dict) else root
        if not isinstance(tensor, FileTensor):
            raise FormatError("expected a tensor, or a dict with one under 'param'", where=path)
        name = rank.saved(folder.name)
        found[name], wrapped[name] = tensor, isinstance(root, dict)
    groups = rank.param_shapes()
    shapes = {k: v for g in groups or [] for k, v in g.items()}
    if is_scrambled(rank):
        if groups is None:
            raise PlanError(
                "round_robin_gradients scrambled this checkpoint, and no 'param_shapes' has the order",
                where=rank.head_path,
            )
        return _unscramble(found, groups, rank, graph)
    masters = {}
    for name, tensor in found.items():
        shape = shapes.get(name, tensor.shape)
        if prod(shape) != tensor.numel:  # the shape of a tensor-parallel shard; the universal file is merged
            if not wrapped[name]:
                raise PlanError(
                    f"{name} has {tensor.numel} elements here and shape {list(shape)} in the model states",
                    where=tensor.path,
                )
            shape = tensor.shape
        masters[name] = _whole(f"zero/{name}", tensor, shape, graph)
    order = {name: i for i, name in enumerate(shapes)}
    return dict(sorted(masters.items(), key=lambda kv: order.get(kv[0], len(order))))


def _whole(key: str, tensor: FileTensor, shape: tuple[int, ...], graph: GraphBuilder) -> Master:
    graph.store(key, concatenated([_flat(tensor)], (tensor.numel,)))
    return Master(shape, (Box.interval(key, 0, tensor.numel),) if tensor.numel else ())


def _flat(tensor: FileTensor) -> FileTensor:
    if not tensor.is_contiguous:
        raise FormatError(f"an fp32 tensor is not contiguous: stride {tensor.stride}", where=tensor.path)
    return FileTensor(tensor.dtype, (tensor.numel,), (1,), tensor.path, tensor.offset, tensor.storage)


def _unscramble(
    found: Mapping[str, FileTensor],
    groups: list[dict[str, tuple[int, ...]]],
    rank: ModelRank,
    graph: GraphBuilder,
) -> dict[str, Master]:
    """Join the files in module order, which gives the flat group back, and cut it at the parameters."""
    masters: dict[str, Master] = {}
    order = {name: i for i, name in enumerate(rank.module or {})}
    for g, shapes in enumerate(groups):
        names = sorted(shapes, key=lambda n: order.get(n, len(order)))
        missing = next((n for n in names if n not in found), None)
        if missing is not None:
            raise PlanError(
                f"the universal checkpoint lacks parameter {missing}", where=rank.head_path.parent
            )
        key = f"zero/group_{g}"
        total = sum(prod(s) for s in shapes.values())
        graph.store(key, concatenated([_flat(found[n]) for n in names], (total,)))
        at = 0
        for name, shape in shapes.items():
            n = prod(shape)
            masters[name] = Master(shape, (Box.interval(key, at, at + n),) if n else ())
            at += n
    return masters
