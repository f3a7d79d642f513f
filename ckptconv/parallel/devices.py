"""Say which slice of a tensor a rank holds under MindSpore's device layouts.

A layout arranges the ranks of a pipeline stage as a matrix of devices, row-major, and maps each axis of a
tensor to the device axes that cut it, counted from the right (mindspore 2.9, ``parallel/_tensor.py``,
``_get_tensor_strategy``, ``_get_tensor_slice_index``, ``_expand_layout``). An optimizer shard cuts axis 0 of
that slice once more over device axes that cut no other (``_construct_tensor_layout_helper``).
"""

from __future__ import annotations

from math import prod
from typing import Final

from ckptconv.errors import PlanError
from ckptconv.records import dataclass
from ckptconv.relations import Box

__all__ = ["Cut", "DeviceLayout", "cut", "slice_box", "stacked_box"]

_MOST_RANKS: Final = 1 << 20  # dicts are made of as many


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """How one tensor lies on the ranks of a pipeline stage.

    Attributes:
        devices: The device matrix.
        tensor_map: For each axis of the tensor the device axes that cut it, most significant first, each
            counted from the right; empty for an axis that is whole.
        shard_step: Distance of the ranks of an optimizer shard; 0 for no shard, below 0 unknown.
        shard_size: Pieces the optimizer shard cuts a slice into; 0 for none, -1 for one a replica.
    """

    devices: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0

    def __post_init__(self) -> None:
        if self.ranks > _MOST_RANKS:
            raise PlanError(f"a layout over {self.ranks:,} ranks", hint="check the strategy files")

    @property
    def ranks(self) -> int:
        """The ranks of the stage."""
        return prod(self.devices)


@dataclass(frozen=True, slots=True)
class Cut:
    """A layout as arithmetic on ranks.

    Attributes:
        digits: For each axis of the tensor ``(stride, size)`` pairs, the most significant first: digit
            ``rank // stride % size`` of the slice's number along the axis.
    """

    digits: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Slices along each axis."""
        return tuple(prod(size for _, size in axis) for axis in self.digits)

    def index(self, rank: int) -> tuple[int, ...]:
        """Return which slice a rank of the stage holds, along each axis."""
        found = []
        for axis in self.digits:
            number = 0
            for stride, size in axis:
                number = number * size + rank // stride % size
            found.append(number)
        return tuple(found)


def cut(layout: DeviceLayout, ndim: int, name: str) -> Cut:
    """Work out a layout for a tensor of ``ndim`` axes.

    Raises:
        PlanError: if the layout contradicts itself, or is one of another number of axes.
    """
    devices = layout.devices
    if not devices or min(devices) < 1:
        raise _wrong(name, layout, "the device matrix is none")
    strides = [prod(devices[a + 1 :]) for a in range(len(devices))]
    used: set[int] = set()
    digits: list[list[tuple[int, int]]] = []
    for entry in _entries(layout, ndim, name):
        axis: list[tuple[int, int]] = []
        for t in entry:
            a = len(devices) - 1 - t
            if not 0 <= a < len(devices):
                raise _wrong(name, layout, f"there is no device axis {t}")
            if a in used:
                raise _wrong(name, layout, f"device axis {t} cuts two axes")
            used.add(a)
            axis.append((strides[a], devices[a]))
        digits.append(axis)
    # MindSpore takes either being 0 for no shard.
    if layout.shard_size not in (0, 1) and layout.shard_step != 0:
        free = [(strides[a], devices[a]) for a in range(len(devices)) if a not in used and devices[a] > 1]
        pieces = _optimizer_digits(layout, free, name)
        if pieces and not digits:
            raise _wrong(name, layout, "a scalar cannot have an optimizer shard")
        if pieces:
            digits[0] += pieces
    return Cut(tuple(tuple(axis) for axis in digits))


def _entries(layout: DeviceLayout, ndim: int, name: str) -> tuple[tuple[int, ...], ...]:
    entries = layout.tensor_map
    if len(entries) == ndim:
        return entries
    if not any(entries):
        return ((),) * ndim
    if ndim == 1 and all(
        entries
    ):  # written for one axis, (a, b) over two device axes looks like two axes over one each
        return (tuple(t for entry in entries for t in entry),)
    raise _wrong(name, layout, f"the tensor has {ndim} axes")


def _optimizer_digits(layout: DeviceLayout, free: list[tuple[int, int]], name: str) -> list[tuple[int, int]]:
    """Spread an optimizer shard over the free device axes, the innermost first."""
    size = prod(n for _, n in free) if layout.shard_size == -1 else layout.shard_size
    left = size
    digits: list[tuple[int, int]] = []
    for stride, n in reversed(free):
        if left <= 1:
            break
        k = min(n, left)
        if n % k or left % k:
            raise _wrong(name, layout, f"{size} optimizer shards cannot lie on its {n} replicas")
        digits.insert(0, (stride, k))
        left //= k
    if left != 1:
        raise _wrong(name, layout, f"{size} optimizer shards need more replicas than there are")
    if digits and layout.shard_step > 0:
        # The ranks of a shard are evenly apart if they lie on one axis; else the step is that of the
        # innermost axis, or their mean distance.
        reach = sum(stride * (k - 1) for stride, k in digits)
        if layout.shard_step not in (digits[-1][0], reach // (size - 1)):
            raise _wrong(name, layout, f"its ranks are {digits[-1][0]} apart")
    return digits


def _wrong(name: str, layout: DeviceLayout, why: str) -> PlanError:
    maps = [list(entry) or -1 for entry in layout.tensor_map]
    return PlanError(
        f"{name}: device matrix {list(layout.devices)}, tensor map {maps}, optimizer shard step "
        f"{layout.shard_step} and size {layout.shard_size} contradict each other: {why}",
        hint="check that the strategy files belong to this checkpoint",
    )


def slice_box(name: str, whole: tuple[int, ...], cut: Cut, rank: int) -> Box:
    """Return the part of a whole tensor that a rank of the stage holds."""
    size = tuple(n // c for n, c in zip(whole, cut.counts, strict=True))
    start = tuple(i * n for i, n in zip(cut.index(rank), size, strict=True))
    return Box.of(name, whole, start=start, size=size)


def stacked_box(name: str, whole: tuple[int, ...], cut: Cut) -> Box:
    """Return all of a whole tensor in the order of its slices, the last axis' next to each other."""
    view = [n for size, count in zip(whole, cut.counts, strict=True) for n in (count, size // count)]
    order = [*range(0, len(view), 2), *range(1, len(view), 2)]
    return Box.of(name, whole, view=view, order=order)
