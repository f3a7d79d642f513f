"""Know what a release of DeepSpeed got wrong in its files, or left out of them.

Read in the history of the repository (``deepspeed/runtime/engine.py`` and ``runtime/zero/*.py`` at the tags
named), and seen in real saves of 0.3.16, 0.7.7, 0.12.6 and 0.17.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from ckptconv.containers.base import FileTensor
from ckptconv.readers.deepspeed.states import ModelRank, as_dict

__all__ = ["buffers_of", "has_wrong_slices", "orders_by_module", "release", "saved_no_masters"]

_Release = tuple[int, int, int]
# Up to 0.4.2 param_shapes lists named_parameters(), frozen ones among them; 2a921069d (0.4.3) lists what the
# optimizer's groups hold. Stage 2 dealt its parameters out to the ranks in turn since 0.4.0 (ee4deabd7),
# which 7392e4590 (0.4.4) took into account.
_LISTS_GROUPS: Final[_Release] = (0, 4, 3)
_LISTS_DEALT: Final[_Release] = (0, 4, 4)
# The slices of a group shared by fewer ranks than all were computed for all: 224a05c35 (0.14.5).
_SLICES_OF_EXPERTS: Final[_Release] = (0, 14, 5)
# 889f0ead2 gave two kinds of bf16 one name, so that the optimizer of the other was made, which saves nothing
# where bf16 is on: 991ebd727 (0.18.5).
_NO_MASTERS: Final[tuple[_Release, _Release]] = ((0, 17, 6), (0, 18, 4))
_FP32: Final = ("fp32", "float32", "float", "torch.float32")  # 0.17.6, runtime/config.py, DtypeEnum


def release(rank: ModelRank) -> _Release | None:
    """Return the release that wrote the files; None before 0.4.0, which does not say it."""
    said = rank.head.get("ds_version") or (rank.optim[0].get("ds_version") if rank.optim else None)
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", said) if isinstance(said, str) else None
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def orders_by_module(rank: ModelRank) -> bool:
    """Whether ``param_shapes`` lists parameters in another order than the partitions hold them.

    The list of lists by group came later (0.5.4), and with it nothing but the order of the partitions.
    """
    shapes = rank.head.get("param_shapes") or (rank.optim[0].get("param_shapes") if rank.optim else None)
    if shapes is None or isinstance(shapes, list):
        return False
    found = release(rank)
    return found is None or found < (_LISTS_GROUPS if rank.stage == 3 else _LISTS_DEALT)


def buffers_of(rank: ModelRank) -> frozenset[str]:
    """Return the names of the module's buffers.

    Before 0.4.2 no file lists them, but ``param_shapes`` lists all parameters: what is not among them is a
    buffer, or at stage 3 the placeholder of a tied parameter, of one element.
    """
    named = rank.head.get("buffer_names")
    if named is not None or rank.module is None or not orders_by_module(rank):
        return frozenset(str(name) for name in named or ())
    parameters = rank.param_names()
    return frozenset(
        str(name)
        for name, tensor in rank.module.items()
        if str(name) not in parameters
        and isinstance(tensor, FileTensor)
        and (tensor.numel > 1 or tensor.dtype.kind != "float" or not rank.sharded)
    )


def has_wrong_slices(rank: ModelRank) -> bool:
    """Whether ``param_slice_mappings`` is wrong for expert groups."""
    found = release(rank)
    return found is None or found < _SLICES_OF_EXPERTS


def saved_no_masters(ranks: Iterable[ModelRank]) -> str | None:
    """Return the release that wrote no masters of such a run, or None if it should have."""
    for rank in ranks:
        found = release(rank)
        if found is None or not _NO_MASTERS[0] <= found <= _NO_MASTERS[1]:
            return None
        config = as_dict(rank.head.get("ds_config"))
        if not any(as_dict(config.get(key)).get("enabled") for key in ("bf16", "bfloat16")):
            return None
        stage: Any = as_dict(config.get("zero_optimization")).get("stage", 0)
        gradients = as_dict(config.get("data_types")).get("grad_accum_dtype")
        if stage != 0 and not (stage == 1 and gradients in _FP32):
            return None
        return ".".join(map(str, found))
    return None
