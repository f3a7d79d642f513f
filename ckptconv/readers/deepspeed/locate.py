"""Locate the masters of a rank, however its optimizer keeps them, and check them by its 16-bit weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.torchtensors import refuse_odd
from ckptconv.errors import PlanError
from ckptconv.readers.deepspeed.assemble import Reading, aliases_of, rename_by_values
from ckptconv.readers.deepspeed.experts import Experts
from ckptconv.readers.deepspeed.find import TagFiles
from ckptconv.readers.deepspeed.flat import flat_masters
from ckptconv.readers.deepspeed.masters import Master
from ckptconv.readers.deepspeed.releases import buffers_of, orders_by_module
from ckptconv.readers.deepspeed.stage0 import has_masters, nameless_masters
from ckptconv.readers.deepspeed.states import ModelRank, as_dict, load
from ckptconv.readers.deepspeed.universal import is_scrambled, universal_masters
from ckptconv.readers.deepspeed.zero3 import zero3_masters
from ckptconv.relations import Drop

__all__ = ["are_wanted", "check_rounding", "locate_masters", "module_of", "stage0_optimizers", "tensors_of"]

_SAMPLED = 16  # masters compared with their 16-bit weights while a checkpoint is opened


def are_wanted(reading: Reading, rank: ModelRank) -> bool:
    """Whether the masters are to be located: always where there is nothing else, as in stage 3."""
    return reading.weights == "master" or rank.sharded or bool(rank.optim and rank.unsaved())


def module_of(reading: Reading, rank: ModelRank) -> dict[str, FileTensor]:
    """Return what the module saves of its parameters, and frozen ones that stage 2 saves beside it only."""
    module = tensors_of(reading, rank.module or {})
    if not rank.sharded:
        for name, tensor in as_dict(rank.head.get("frozen_param_fragments")).items():
            refuse_odd(str(name), tensor, rank.head_path)
            if isinstance(tensor, FileTensor):
                module.setdefault(rank.saved(name), tensor)
    return module


def tensors_of(reading: Reading, module: Mapping[Any, Any]) -> dict[str, FileTensor]:
    """Return a state dict's tensors; entries that are none (extra states) are said.

    Raises:
        FormatError: if one is of a kind that cannot be located.
    """
    for name, entry in module.items():
        refuse_odd(str(name), entry, reading.run.tag)
    others = [str(k) for k, v in module.items() if not isinstance(v, FileTensor) and v is not None]
    if others:
        more = ", ..." if len(others) > 8 else ""
        reading.note("warning", f"no tensors, so left out: {', '.join(others[:8])}{more}")
    return {str(k): v for k, v in module.items() if isinstance(v, FileTensor)}


def locate_masters(
    reading: Reading, rank: ModelRank, module: Mapping[str, FileTensor]
) -> tuple[dict[str, Master], bool]:
    """Locate the rank's fp32 masters, however its optimizer keeps them.

    Returns:
        The masters, and whether all of them are to be compared with the 16-bit weights, as it is their values
        that tell or prove which is whose.
    """
    if reading.files.universal is not None:
        if is_scrambled(rank):
            text = (
                "round_robin_gradients scrambled this universal checkpoint; its parameters are put in order"
            )
            reading.note("warning", f"{text} again, and compared with the 16-bit weights")
        return universal_masters(reading.files.universal, rank, reading.graph), False
    if rank.stage == 3:
        return zero3_masters(rank, reading.graph), False
    if not rank.optim:
        return _stage0_masters(reading, rank, module), True
    others = buffers_of(rank) | aliases_of(rank, module).keys()
    masters, order = flat_masters(rank, reading.graph, module, others, reading.sampler)
    if order == "found":
        why = "is not that of the masters" if orders_by_module(rank) else "is not in the files"
        text = (
            f"the order of the parameters {why} in this release: each master was given to the parameter it "
        )
        reading.note("guess", text + "rounds to, and is compared with it")
    masters = rename_by_values(reading, rank, module, masters, others)
    if reading.weights == "master":
        return masters, order != "told"
    for name in [n for n in masters if n in module]:
        boxes = masters.pop(name).boxes
        reading.graph.left_only += [Drop(box, "the 16-bit value is read") for box in boxes]
    return masters, order != "told"


def _stage0_masters(reading: Reading, rank: ModelRank, module: Mapping[str, FileTensor]) -> dict[str, Master]:
    """Name the masters of stage 0; with experts, those of each expert-parallel rank in turn."""
    skipped = buffers_of(rank) | aliases_of(rank, module).keys()
    candidates = {n: t for n, t in module.items() if n not in skipped and t.dtype.kind == "float"}
    optimizers = list(stage0_optimizers(reading.files, rank))
    experts = Experts(candidates)
    out: dict[str, Master] = {}
    for ep, state, path in optimizers:
        if not has_masters(state):
            continue
        text = "stage 0 masters carry no names: each was given to the parameter it rounds to, and is compared"
        reading.note("guess", text)
        prefix = f"mp_rank_{rank.mp:02d}/" + (f"expp_rank_{ep}/" if len(optimizers) > 1 else "")
        mine = {n: t for n, t in candidates.items() if experts.of_rank(n, len(optimizers)) in (None, ep)}
        for name, master in nameless_masters(
            state, mine, reading.graph, prefix, reading.sampler, path
        ).items():
            if name in out:  # dense parameters are repeated by every expert-parallel rank
                reading.graph.pairs += master.pairs(name, copy=True)
            else:
                out[name] = master
    return out


def check_rounding(
    reading: Reading, rank: ModelRank, module: Mapping[str, FileTensor], masters: Mapping[str, list[Master]]
) -> None:
    """Check a sample of masters against the 16-bit weights they round to after every training step.

    Files of two saves have the same names and shapes; only their values tell them apart.
    """
    if rank.sharded:
        return  # placeholders
    both = [n for n, located in masters.items() if n in module and module[n].shape == located[0].shape]
    for name in both[:: max(1, len(both) // _SAMPLED)]:
        boxes, tensor = masters[name][0].boxes, module[name]
        if len(boxes) != 1 or not boxes[0].is_contiguous or not tensor.is_contiguous:
            continue
        box = boxes[0]
        stored = reading.graph.stored[box.tensor]
        apart = reading.sampler.apart(stored, box.offset, tensor, count=64)
        if apart is not None:
            at = box.offset + apart
            path, byte, _ = next(stored.spans(at, at + 1))
            index, step = [int(i) for i in np.unravel_index(apart, tensor.shape)], tensor.dtype.itemsize
            raise PlanError(
                f"the fp32 master of {name}{index} does not round to its 16-bit weights",
                where=f"{path} at byte {byte}, and {tensor.path} at byte {tensor.offset + apart * step}",
                hint="optimizer and model states are of different saves; copy one whole save, or take the "
                "16-bit weights (--weights model)",
            )


def stage0_optimizers(files: TagFiles, rank: ModelRank) -> Iterator[tuple[int, Mapping[str, Any], Path]]:
    """Yield the optimizer states of stage 0 by expert-parallel rank; without experts there is one."""
    experts = files.expert_optim.get(rank.mp, {})
    for ep, path in sorted(experts.items()):
        yield ep, as_dict(load(path).get("optimizer")), path
    if not experts:
        yield 0, as_dict(rank.head.get("optimizer")), rank.head_path
