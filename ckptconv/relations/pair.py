"""Say which elements of two tensors are the same: pairs of boxes, and boxes that have no partner."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from math import prod
from typing import NamedTuple

from ckptconv.errors import PlanError
from ckptconv.relations.box import Box
from ckptconv.relations.meet import Axes, Joint, Window, meet, nests

__all__ = [
    "NEXT",
    "Drop",
    "Pair",
    "Spec",
    "Where",
    "as_pair",
    "ends",
    "is_same",
    "join",
    "joined",
    "pair_window",
    "restrict",
    "sorted_axes",
    "spec_text",
    "where_is",
    "window",
]

NEXT = "compare the checkpoint with the model's configuration and the parallel layout; nothing was read"


class Spec(NamedTuple):
    """The shape of a tensor and the name of its element type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return prod(self.shape)


class Pair(NamedTuple):
    """Say that the elements of two boxes, in their order, are the same.

    Attributes:
        left: Where they are on the left.
        right: Where they are on the right.
        left_copy: The left box is a replica: another pair already provides these right elements.
        right_copy: The right box is a replica: another pair already takes these left elements.
    """

    left: Box
    right: Box
    left_copy: bool = False
    right_copy: bool = False

    @property
    def is_copy(self) -> bool:
        return self.left_copy or self.right_copy

    def invert(self) -> Pair:
        left, right, left_copy, right_copy = self
        return as_pair((right, left, right_copy, left_copy))

    def aligned(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return one size for both boxes and the strides of each: ``(size, left_stride, right_stride)``.

        Raises:
            PlanError: if the boxes differ in number of elements, or no common size exists (see `join`).
        """
        left, right = self.left, self.right
        if left.size == right.size:
            return left.size, left.stride, right.stride
        if left.numel != right.numel:
            raise PlanError(
                f"{where_is(left)} has {left.numel} elements, {where_is(right)} has {right.numel}", hint=NEXT
            )
        if left.numel == 0:
            return (0,), (1,), (1,)
        axes: list[tuple[int, int, int]] = []
        lefts = [(n, s) for n, s in zip(left.size, left.stride, strict=True) if n > 1]
        rights = [(n, s) for n, s in zip(right.size, right.stride, strict=True) if n > 1]
        while lefts:
            (n, a), (m, b) = lefts.pop(), rights.pop()
            small, large = min(n, m), max(n, m)
            if large % small:
                raise PlanError(
                    f"{where_is(left)} of size {left.size} and {where_is(right)} of size {right.size} "
                    "have no common axes; join() cuts them into pairs that do"
                )
            axes.append((small, a, b))
            if n > m:
                lefts.append((n // m, a * m))
            elif m > n:
                rights.append((m // n, b * n))
        axes.reverse()
        size, left_stride, right_stride = (tuple([axis[i] for axis in axes]) for i in range(3))
        return size, left_stride, right_stride


as_pair: Callable[[tuple[Box, Box, bool, bool]], Pair] = partial(tuple.__new__, Pair)
"""Make a pair of its parts, as `as_box` makes a box."""


class Drop(NamedTuple):
    """Elements that one side has alone, and why: a ZeRO tail, padding rows, an unused buffer."""

    box: Box
    reason: str


def join(left: Box, right: Box, *, left_copy: bool = False, right_copy: bool = False) -> list[Pair]:
    """Pair two boxes of as many elements in their order, cut where they have no common axes.

    Raises:
        PlanError: if they differ in number of elements.
    """
    pair = Pair(left, right, left_copy, right_copy)
    try:
        pair.aligned()
        return [pair]
    except PlanError:
        if left.numel != right.numel:
            raise
    joints = meet(_counted(left), _counted(right))
    return [joined(pair, pair, joint) for joint in joints]


def restrict(pair: Pair, lo: int, hi: int) -> list[Pair]:
    """Return the part of a pair whose right elements lie in the flat interval ``lo`` to ``hi`` (exclusive).

    At most ``2 * d - 1`` pairs for boxes of ``d`` common axes: head, body and tail of each.
    """
    right = pair.right
    if right.numel == 0 or lo >= hi or right.first >= hi or right.last < lo:
        return []
    if lo <= right.first and right.last < hi:
        return [pair]
    lo = max(lo, right.first)
    run = window(Box.interval(right.tensor, lo, min(hi, right.last + 1)), address=True)
    joints = meet(pair_window(pair, at_right=True), run)
    return [joined(pair, pair, joint) for joint in sorted(joints, key=lambda joint: joint.right)]


def pair_window(pair: Pair, *, at_right: bool) -> Window:
    """See a pair from one of its tensors; the other end is the second address."""
    here, there = (pair.right, pair.left) if at_right else (pair.left, pair.right)
    axes = _pair_axes(here.size, here.stride, there.size, there.stride)
    if axes is None:
        pair.aligned()
        raise PlanError(f"{where_is(here)} of size {here.size} and stride {here.stride} overlaps itself")
    return Window(here.offset, there.offset, axes)


Sizes = tuple[int, ...]


@lru_cache(maxsize=1 << 14)
def _pair_axes(size: Sizes, stride: Sizes, other_size: Sizes, other_stride: Sizes) -> Axes | None:
    """Return the axes of two boxes together, None if they have none in common or the first overlaps itself.

    The boxes of a model's many layers, experts and ranks have few forms.
    """
    try:
        both = Pair(Box("", 0, size, stride), Box("", 0, other_size, other_stride)).aligned()
    except PlanError:
        return None
    axes = tuple(zip(*both, strict=True))
    if len(axes) <= 1:
        return axes
    axes = _merged(sorted(axes, key=_stride, reverse=True))
    return axes if nests(axes) else None


def window(box: Box, *, address: bool = False) -> Window:
    """See a box by itself; with ``address`` the second address is the flat index."""
    axes = sorted_axes(box)
    if address:
        return Window(box.offset, box.offset, tuple([(n, s, s) for n, s, _ in axes]))
    return Window(box.offset, 0, axes)


def _counted(box: Box) -> Window:
    """See a box from the count of its elements, in its order."""
    axes: list[tuple[int, int, int]] = []
    count = 1
    for n, stride in zip(reversed(box.size), reversed(box.stride), strict=True):
        if n > 1:
            axes.append((n, count, stride))
            count *= n
    return Window(0, box.offset, tuple(reversed(axes)))


def sorted_axes(box: Box) -> Axes:
    """Return a box's axes with the largest stride first, neighbours merged."""
    axes = [(n, s, 0) for n, s in zip(box.size, box.stride, strict=True) if n > 1]
    return tuple(axes) if len(axes) < 2 else _merged(sorted(axes, key=_stride, reverse=True))


def _stride(axis: tuple[int, int, int]) -> int:
    return axis[1]


def _merged(axes: Iterable[tuple[int, int, int]]) -> Axes:
    """Join neighbours that are one axis at both addresses."""
    done: list[tuple[int, int, int]] = []
    for n, a, b in axes:
        if done and done[-1][1] == n * a and done[-1][2] == n * b:
            done[-1] = (done[-1][0] * n, a, b)
        else:
            done.append((n, a, b))
    return tuple(done)


def joined(first: Pair, second: Pair, joint: Joint) -> Pair:
    """Pair the left of one pair with the right of another where they meet; right elements ascend."""
    left, right = ends(joint)
    return Pair(
        Box(first.left.tensor, *left),
        Box(second.right.tensor, *right),
        first.left_copy or second.left_copy,
        first.right_copy or second.right_copy,
    )


Where = tuple[int, Sizes, Sizes]
"""Offset, size and stride of a box."""


def ends(joint: Joint) -> tuple[Where, Where]:
    """Return what the boxes of a joint are but for their tensors; right elements ascend."""
    axes = sorted(joint.axes, key=lambda axis: -axis[2]) if len(joint.axes) > 1 else joint.axes
    left = Box.strided("", joint.left, [(n, a) for n, a, _ in axes])
    right = Box.strided("", joint.right, [(n, b) for n, _, b in axes])
    return (left.offset, left.size, left.stride), (right.offset, right.size, right.stride)


def is_same(pair: Pair) -> bool:
    """Whether a pair joins each of its elements to itself."""
    left, right = pair.left, pair.right
    return left == right or (
        (left.tensor, left.offset, left.numel) == (right.tensor, right.offset, right.numel)
        and all(n == 1 or a == b for n, a, b in zip(*pair.aligned(), strict=True))
    )


def spec_text(spec: Spec) -> str:
    """Say what a tensor is, for errors."""
    return f"{spec.dtype}{list(spec.shape)}"


def where_is(box: Box) -> str:
    """Say where a box is, for errors."""
    return f"the box of {box.tensor} at flat element {box.offset}"
