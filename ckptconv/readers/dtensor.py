"""Read what one rank holds of a tensor: a DTensor, a ShardedTensor, or all of a plain one.

DTensors: torch 2.13, ``torch/distributed/tensor/``; ShardedTensors: ``torch/distributed/_shard/``.
"""

from __future__ import annotations

from pathlib import Path

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.inert import Global, Record
from ckptconv.containers.torch.torchtensors import odd_tensor, refuse_odd
from ckptconv.dtypes import DType
from ckptconv.errors import FormatError, PlanError
from ckptconv.records import dataclass

__all__ = ["Part", "Sizes", "read_part"]

_REBUILD = "torch._tensor._rebuild_from_type_v2"

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank's file holds of a tensor.

    Attributes:
        kind: ``dtensor``, ``sharded`` or ``plain``.
        shape: Shape of the whole tensor.
        dtype: Its element type; None where the rank has nothing of it.
        shards: Located tensors; of a ShardedTensor with their offsets.
        placements: Of a DTensor: for each axis of the device mesh the tensor axis it cuts, None if it
            replicates.
        coordinate: Of a DTensor: where the rank is in the mesh.
        ranks: Of a DTensor: the mesh's ranks in row-major order, where they are told.
    """

    kind: str
    shape: Sizes
    dtype: DType | None
    shards: tuple[tuple[Sizes | None, FileTensor], ...]
    placements: tuple[int | None, ...] = ()
    coordinate: Sizes = ()
    ranks: Sizes = ()


def read_part(name: str, value: object, path: Path) -> Part | None:
    """Read a value of a rank's state dict; None if it is no tensor.

    Raises:
        FormatError: if it is a tensor of a kind that is not known.
        PlanError: if it is placed in a way that cannot be undone.
    """
    if type(value) is FileTensor:
        return Part("plain", value.shape, value.dtype, ((None, value),))
    odd = odd_tensor(value)
    if odd is None:
        return None
    assert type(value) is Record
    args = value.args
    if value.cls == _REBUILD and len(args) == 4 and type(args[1]) is Global and type(args[2]) is tuple:
        state, shape = args[3], _sizes(args[2][2]) if len(args[2]) > 2 else None
        if args[1].name == "DTensor" and shape is not None:
            attributes = Record("state", state=state)
            return _dtensor(name, attributes, shape, path)
        if args[1].name == "ShardedTensor" and shape is not None and type(state) is tuple:
            return _sharded(name, state, shape, path)
    raise FormatError(
        f"{name}: a tensor that is neither plain nor a DTensor or ShardedTensor: {odd}", where=path
    )


def _dtensor(name: str, state: Record, shape: Sizes, path: Path) -> Part:
    local, spec = state.get("_local_tensor"), state.get("_spec")
    mesh = spec.get("mesh") if type(spec) is Record else None
    placed = spec.get("placements") if type(spec) is Record else None
    at = mesh.get("_coordinate_on_dim") if type(mesh) is Record else None
    refuse_odd(name, local, path)
    if type(local) is not FileTensor or type(mesh) is not Record or type(placed) is not tuple:
        raise FormatError(f"{name}: a DTensor without local tensor, mesh or placements", where=path)
    coordinate = _sizes(at)
    if coordinate is None or len(coordinate) != len(placed):
        raise PlanError(f"{name}: this rank has no place in the DTensor's device mesh", where=path)
    placements = tuple(_axis(name, p, len(shape), path) for p in placed)
    axes = [a for a in placements if a is not None]
    if len(set(axes)) < len(axes):
        raise PlanError(
            f"{name}: one axis is cut by several axes of the device mesh",
            where=path,
            hint="merge it with verl's own model_merger",
        )
    ranks = _sizes(mesh.get("_flatten_rank_map", mesh.get("_flatten_mesh_list"))) or ()
    return Part("dtensor", shape, local.dtype, ((None, local),), placements, coordinate, ranks)


def _axis(name: str, placement: object, dims: int, path: Path) -> int | None:
    """Return the tensor axis a placement cuts, None if it replicates."""
    kind = placement.cls.rsplit(".", 1)[-1] if type(placement) is Record else type(placement).__name__
    if kind == "Replicate":
        return None
    if kind != "Shard":
        raise PlanError(
            f"{name}: the placement {kind} of a DTensor cannot be merged",
            where=path,
            hint="Shard and Replicate can; merge it with verl's own model_merger",
        )
    assert type(placement) is Record
    axis = placement.get("dim", placement.args[0] if placement.args else None)
    if type(axis) is not int or not -dims <= axis < dims:
        raise FormatError(f"{name}: a DTensor of {dims} axes is cut along axis {axis}", where=path)
    return axis % dims


def _sharded(name: str, state: tuple[object, ...], shape: Sizes, path: Path) -> Part:
    shards: list[tuple[Sizes | None, FileTensor]] = []
    for shard in state[0] if state and type(state[0]) is list else (None,):
        tensor = shard.get("tensor") if type(shard) is Record else None
        place = shard.get("metadata") if type(shard) is Record else None
        offsets = place.get("shard_offsets") if type(place) is Record else None
        start = _sizes(offsets)
        refuse_odd(name, tensor, path)
        if type(tensor) is not FileTensor or start is None or len(tensor.shape) != len(shape):
            raise FormatError(f"{name}: a ShardedTensor without its shards", where=path)
        shards.append((start, tensor))
    return Part("sharded", shape, shards[0][1].dtype if shards else None, tuple(shards))


def _sizes(values: object) -> Sizes | None:
    """Return a list or tuple of counts as a tuple, None if it is something else."""
    found = tuple(values) if isinstance(values, (list, tuple)) else None
    return found if found is not None and all(type(n) is int and n >= 0 for n in found) else None
