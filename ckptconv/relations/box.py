"""Describe strided windows of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

from ckptconv.errors import PlanError

__all__ = ["Box", "as_box"]


class Box(NamedTuple):
    """Address a strided hyper-rectangle of the row-major elements of a named tensor.

    Element ``(i0, i1, ...)`` is flat index ``offset + i0 * stride[0] + i1 * stride[1] + ...`` of the tensor.
    Elements are visited in the order of the axes, so a transpose is a permutation of them. The factories give
    the canonical form: no axis of size 1, and no two neighbours that one axis could express.

    Attributes:
        tensor: Name of the tensor.
        offset: Flat index of the first element.
        size: Elements along each axis; ``()`` is a single element.
        stride: Flat distance between neighbours along each axis.
    """

    tensor: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def strided(cls, tensor: str, offset: int, axes: Iterable[tuple[int, int]]) -> Box:
        """Make the canonical box of ``(size, stride)`` axes."""
        size: list[int] = []
        stride: list[int] = []
        for n, step in axes:
            if n == 0:
                return cls(tensor, offset, (0,), (1,))
            if n == 1:
                continue
            if stride and stride[-1] == n * step:
                size[-1] *= n
                stride[-1] = step
            else:
                size.append(n)
                stride.append(step)
        return cls(tensor, offset, tuple(size), tuple(stride))

    @classmethod
    def whole(cls, tensor: str, shape: Sequence[int]) -> Box:
        """Cover every element of a tensor."""
        return cls.interval(tensor, 0, prod(shape))

    @classmethod
    def interval(cls, tensor: str, lo: int, hi: int) -> Box:
        """Cover the flat elements ``lo`` to ``hi`` (exclusive)."""
        count = max(hi - lo, 0)
        return cls(tensor, lo, (), ()) if count == 1 else cls(tensor, lo, (count,), (1,))

    @classmethod
    def of(
        cls,
        tensor: str,
        shape: Sequence[int],
        *,
        start: Sequence[int] | None = None,
        size: Sequence[int] | None = None,
        step: Sequence[int] | None = None,
        order: Sequence[int] | None = None,
        view: Sequence[int] | None = None,
    ) -> Box:
        """Cover a slice of a tensor, per axis of its shape or of a view of it.

        Args:
            tensor: Name of the tensor.
            shape: Its shape.
            start: First index along each axis; 0 by default.
            size: Elements along each axis; all that are left by default.
            step: Distance of neighbours along each axis; 1 by default.
            order: Axes from the slowest to the fastest in the order of visiting.
            view: A shape of as many elements under which the tensor is addressed, for example
                ``(heads, 2, head_dim // 2, hidden)``.

        Raises:
            PlanError: if the view has another number of elements, or the slice leaves the tensor.
        """
        dims = tuple(shape if view is None else view)
        rank = len(dims)
        begin = (0,) * rank if start is None else tuple(start)
        steps = (1,) * rank if step is None else tuple(step)
        if len(begin) == len(steps) == rank and min(steps, default=1) > 0:
            left = zip(dims, begin, steps, strict=True)
            count = tuple(-((b - d) // s) for d, b, s in left) if size is None else tuple(size)
        else:
            count = ()
        axes = tuple(range(rank)) if order is None else tuple(order)
        fits = len(count) == rank and all(
            b >= 0 and n >= 0 and (n == 0 or b + (n - 1) * s < d)
            for d, b, n, s in zip(dims, begin, count, steps, strict=True)
        )
        if prod(dims) != prod(shape) or not fits or sorted(axes) != list(range(rank)):
            raise PlanError(
                f"{tensor}: no slice of shape {tuple(shape)} has view {dims}, start {begin}, size {size}, "
                f"step {steps}, order {axes}",
                hint="compare the tensor's shape with the model's configuration and the parallel layout",
            )
        unit = [1] * rank
        for axis in range(rank - 2, -1, -1):
            unit[axis] = unit[axis + 1] * dims[axis + 1]
        offset = sum(b * u for b, u in zip(begin, unit, strict=True))
        return cls.strided(tensor, offset, ((count[a], steps[a] * unit[a]) for a in axes))

    @property
    def numel(self) -> int:
        return prod(self.size)

    @property
    def first(self) -> int:
        """The lowest flat index."""
        return self.offset

    @property
    def last(self) -> int:
        """The highest flat index (``first - 1`` for an empty box)."""
        last = self.offset
        for n, s in zip(self.size, self.stride, strict=True):
            last += (n - 1) * s
        return last

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are one run, visited in ascending order."""
        return not self.size or self.size == (0,) or (len(self.size) == 1 and self.stride[0] == 1)


as_box: Callable[[tuple[str, int, tuple[int, ...], tuple[int, ...]]], Box] = partial(tuple.__new__, Box)
"""Make a box of its parts, a third of the time of `Box`: a large model's plan makes a million."""
