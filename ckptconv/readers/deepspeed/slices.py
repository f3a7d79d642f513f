"""Place parameters by the slices each rank lists of them (``param_slice_mappings``).

Files of mixtures of experts before June 2026 (02663d6e5) name no shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.inert import Record
from ckptconv.errors import FormatError, PlanError
from ckptconv.readers.deepspeed.experts import Experts
from ckptconv.readers.deepspeed.masters import Shape
from ckptconv.readers.deepspeed.releases import has_wrong_slices
from ckptconv.readers.deepspeed.runs import Run
from ckptconv.readers.deepspeed.states import ModelRank, as_dict
from ckptconv.readers.deepspeed.values import Placed

__all__ = ["by_slices", "has_slices", "layers_of"]


def has_slices(rank: ModelRank, runs: Sequence[Run]) -> bool:
    """Whether the ranks list slices that can be trusted.

    They ignore the order of ``round_robin_gradients``, and those of experts are wrong before 0.14.5.
    """
    config = as_dict(as_dict(rank.head.get("ds_config")).get("zero_optimization"))
    if config.get("round_robin_gradients") or (has_wrong_slices(rank) and any(run.ep > 1 for run in runs)):
        return False
    return all(isinstance(state.get("param_slice_mappings"), list) for state in rank.optim)


def by_slices(rank: ModelRank, run: Run, module: Mapping[str, FileTensor], experts: Experts) -> list[Placed]:
    """Place a group's parameters by the slices each rank lists.

    MoE files before June 2026 (02663d6e5) name no shapes.
    """
    found: dict[str, tuple[int, int]] = {}
    base = 0
    for r in run.members:
        state = rank.optim[r]
        for name, address in as_dict(state["param_slice_mappings"][run.group]).items():
            start, count = _fragment(address)
            known = found.get(name)
            if known is None:
                found[name] = (base + start, count)
            elif known[0] + known[1] != base + start:
                raise PlanError(f"the slices of {name} do not follow one another", where=rank.optim_paths[r])
            else:
                found[name] = (known[0], known[1] + count)
        base += state["single_partition_of_fp32_groups"][run.group].numel
    out: list[Placed] = []
    for local, (at, count) in found.items():
        name = experts.global_name(rank.saved(local), run.ep_rank, run.ep)
        shape = module[name].shape if name in module else _tied_shape(name, count, module)
        if shape is None or prod(shape) != count:
            raise PlanError(
                f"{name} has {count} elements in the partitions and shape {shape} in the 16-bit weights",
                where=rank.head_path,
            )
        out.append((name, shape, at))
    return out


def _tied_shape(name: str, count: int, module: Mapping[str, FileTensor]) -> Shape | None:
    """Return the shape of a pipeline's tied parameter."""
    found = {t.shape for t in layers_of(name, module) if t.numel == count}
    return found.pop() if len(found) == 1 else None


def _fragment(address: object) -> tuple[int, int]:
    """Read ``deepspeed.utils.tensor_fragment.fragment_address``: start and length in a rank's partition."""
    if isinstance(address, Record):
        start, count = address.get("start"), address.get("numel")
        if isinstance(start, int) and isinstance(count, int):
            return start, count
    raise FormatError(f"not a fragment address: {address!r}")


def layers_of(name: str, module: Mapping[str, FileTensor]) -> list[FileTensor]:
    """Return what may be a pipeline's tied parameter, which layer files hold under the layer's number."""
    if not name.startswith("tied_modules."):
        return []
    suffix = name.split(".", 2)[2]
    return [t for n, t in module.items() if n.partition(".")[2] == suffix]
