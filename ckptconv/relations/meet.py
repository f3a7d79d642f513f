"""Intersect strided windows, and find which of many overlap."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Axes", "Joint", "Window", "meet", "meet_axes", "nests", "overlapping", "reach", "rows_of"]

Axes = tuple[tuple[int, int, int], ...]
"""Axes of a window: size, stride in the shared tensor, stride at the other address of each element."""


class Window(NamedTuple):
    """A box of a shared tensor together with a second address for each of its elements.

    Attributes:
        first: Flat index of its first element in the shared tensor.
        other: Second address of that element.
        axes: Size (2 or more), stride in the shared tensor (descending), stride of the second address.
    """

    first: int
    other: int
    axes: Axes

    @property
    def last(self) -> int:
        return self.first + reach(self.axes)


class Joint(NamedTuple):
    """Common elements of two windows: the second address in each, with axes of (size, stride, stride)."""

    left: int
    right: int
    axes: Axes


def reach(axes: Axes) -> int:
    """Return the flat distance from the first to the last element."""
    total = 0
    for n, stride, _ in axes:
        total += (n - 1) * stride
    return total


def nests(axes: Axes) -> bool:
    """Tell whether each axis steps over all that lies inside it, so that no element is visited twice."""
    inside = 0
    for n, stride, _ in reversed(axes):
        if stride <= inside:
            return False
        inside += (n - 1) * stride
    return True


def rows_of(axes: Axes, row: int) -> tuple[int, Axes]:
    """Return the number of rows and the axes inside a row."""
    return (axes[0][0], axes[1:]) if axes and axes[0][1] == row else (1, axes)


def meet(x: Window, y: Window) -> list[Joint]:
    """Return the common elements of two nested windows of one tensor, as disjoint joints.

    A flat interval yields at most ``2 * d - 1`` joints with a window of ``d`` axes. Where the strides of the
    two windows do not divide one another, the outer axis of one is cut into slices; the result is always
    exact.
    """
    if len(x.axes) == len(y.axes) == 1 and x.axes[0][1] == y.axes[0][1]:
        return _meet_runs(x, y)
    if x.first == y.first and len(x.axes) == len(y.axes):
        same = tuple(
            [(n, a, b) for (n, s, a), (m, t, b) in zip(x.axes, y.axes, strict=True) if (n, s) == (m, t)]
        )
        if len(same) == len(x.axes):
            return [Joint(x.other, y.other, same)]
    found: list[Joint] = []
    meet_axes(x.axes, y.axes, y.first - x.first, x.other, y.other, (), False, found)
    return _gathered(found) if len(found) > 1 else found


def _meet_runs(x: Window, y: Window) -> list[Joint]:
    """Intersect two series of elements of one stride."""
    ((x_count, stride, x_step),), ((y_count, _, y_step),) = x.axes, y.axes
    ahead, phase = divmod(y.first - x.first, stride)
    lo, hi = max(0, ahead), min(x_count, ahead + y_count)
    if phase or lo >= hi:
        return []
    axes = ((hi - lo, x_step, y_step),) if hi - lo > 1 else ()
    return [Joint(x.other + lo * x_step, y.other + (lo - ahead) * y_step, axes)]


def _gathered(joints: list[Joint]) -> list[Joint]:
    """Put together neighbours that one axis can express: a head or tail of full rows, a series of slices."""
    done = [joints[0]]
    for joint in joints[1:]:
        if (both := _extended(done[-1], joint)) is not None:
            done[-1] = both
        else:
            done.append(joint)
    return done


def _extended(one: Joint, two: Joint) -> Joint | None:
    """Return two joints as one if the second goes on where the first ends."""
    ahead = (two.left - one.left, two.right - one.right)
    for count, one_step, inner in _as_series(one):
        step = one_step or ahead
        for more, two_step, two_inner in _as_series(two):
            goes_on = ahead == (count * step[0], count * step[1]) and (two_step or step) == step
            if goes_on and inner == two_inner:
                axes = ((count + more, *step), *inner)
                if all(nests(_descending(axes, side)) for side in (0, 1)):
                    return Joint(one.left, one.right, axes)
    return None


def _as_series(joint: Joint) -> list[tuple[int, tuple[int, int] | None, Axes]]:
    """Return the two ways to see a joint as equal blocks: (how many, their distance, axes of a block)."""
    series: list[tuple[int, tuple[int, int] | None, Axes]] = [(1, None, joint.axes)]
    if joint.axes:
        count, left, right = joint.axes[0]
        series.append((count, (left, right), joint.axes[1:]))
    return series


def _descending(axes: Axes, side: int) -> Axes:
    """Return a joint's axes as those of a window, by the left (0) or the right (1) stride."""
    return tuple(sorted(((a[0], a[1 + side], 0) for a in axes), key=lambda axis: -axis[1]))


def meet_axes(
    x: Axes, y: Axes, ahead: int, x_other: int, y_other: int, done: Axes, swapped: bool, found: list[Joint]
) -> None:
    """Intersect two windows, the second of which starts ``ahead`` elements after the first."""
    x_reach, y_reach = reach(x), reach(y)
    if ahead > x_reach or -ahead > y_reach:
        return
    if not x and not y:
        found.append(Joint(y_other, x_other, done) if swapped else Joint(x_other, y_other, done))
        return
    if not x or (y and x[0][1] < y[0][1]):
        x, y, x_other, y_other, x_reach, y_reach = y, x, y_other, x_other, y_reach, x_reach
        ahead, swapped = -ahead, not swapped
    count, row, x_step = x[0]
    inner = x[1:]
    rows = _as_rows(y, y_reach, ahead, row)
    if rows is None:
        _meet_slices(x, y, ahead, x_other, y_other, done, swapped, found)
        return
    for skip, moved, many, y_step, y_inner in rows:
        shift, phase = divmod(ahead + skip, row)
        for turn in (0, 1):  # a row of y may end in the next row of x
            lo, hi = max(0, -shift - turn), min(many, count - shift - turn)
            if lo >= hi:
                continue
            axis = (hi - lo, y_step, x_step) if swapped else (hi - lo, x_step, y_step)
            meet_axes(
                inner,
                y_inner,
                phase - turn * row,
                x_other + (lo + shift + turn) * x_step,
                y_other + moved + lo * y_step,
                (*done, axis) if hi - lo > 1 else done,
                swapped,
                found,
            )


def _as_rows(y: Axes, y_reach: int, ahead: int, row: int) -> list[tuple[int, int, int, int, Axes]] | None:
    """Cut a window into head, body and tail along a grid of rows.

    Returns (flat offset, other offset, number of rows, other stride of a row, axes inside a row) for each, or
    None where the window's outer stride does not divide the row.
    """
    phase = ahead % row
    if y and y[0][1] == row:
        return [(0, 0, y[0][0], y[0][2], y[1:])]
    if phase + y_reach < row:
        return [(0, 0, 1, 0, y)]
    count, stride, other = y[0]
    if row % stride:
        return None
    per_row = row // stride
    head = min(count, -((phase - row) // stride)) if phase >= stride else 0
    body, tail = divmod(count - head, per_row)
    rest = y[1:]
    rows: list[tuple[int, int, int, int, Axes]] = []
    if head:
        rows.append((0, 0, 1, 0, ((head, stride, other), *rest) if head > 1 else rest))
    if body:
        axes = ((per_row, stride, other), *rest)
        rows.append((head * stride, head * other, body, per_row * other, axes))
    if tail:
        done = head + body * per_row
        rows.append((done * stride, done * other, 1, 0, ((tail, stride, other), *rest) if tail > 1 else rest))
    return rows


def _meet_slices(
    x: Axes, y: Axes, ahead: int, x_other: int, y_other: int, done: Axes, swapped: bool, found: list[Joint]
) -> None:
    """Intersect windows without a common grid: slice the outer axis of the one that needs fewer slices."""
    (x_count, x_stride, x_step), (y_count, y_stride, y_step) = x[0], y[0]
    x_lo = max(0, -((reach(x[1:]) - ahead) // x_stride))
    x_hi = min(x_count, (ahead + reach(y)) // x_stride + 1)
    y_lo = max(0, -((ahead + reach(y[1:])) // y_stride))
    y_hi = min(y_count, (reach(x) - ahead) // y_stride + 1)
    if x_hi - x_lo <= y_hi - y_lo:
        for i in range(x_lo, x_hi):
            meet_axes(x[1:], y, ahead - i * x_stride, x_other + i * x_step, y_other, done, swapped, found)
    else:
        for j in range(y_lo, y_hi):
            meet_axes(x, y[1:], ahead + j * y_stride, x_other, y_other + j * y_step, done, swapped, found)


def overlapping(xs: Sequence[Window], ys: Sequence[Window]) -> Iterator[tuple[int, int]]:
    """Yield the index pairs of windows that may share elements, each once; a pair not yielded shares none.

    Windows are compared by their range of flat indices, or by their range of columns under the largest stride
    where that leaves fewer candidates (many column blocks of one large tensor).
    """
    x_flat = [(w.first, w.last) for w in xs]
    y_flat = [(w.first, w.last) for w in ys]
    few = 4 * (len(xs) + len(ys))
    if (total := _candidates(x_flat, y_flat)) > few:
        row = max((w.axes[0][1] for side in (xs, ys) for w in side if w.axes), default=1)
        x_column = [_columns(w, row) for w in xs]
        y_column = [_columns(w, row) for w in ys]
        if _candidates(x_column, y_column) < total:
            for i, j in _sweep(x_column, y_column):
                if x_flat[i][0] <= y_flat[j][1] and y_flat[j][0] <= x_flat[i][1]:
                    yield i, j
            return
    yield from _sweep(x_flat, y_flat)


def _columns(window: Window, row: int) -> tuple[int, int]:
    """Return a range of columns, in rows of ``row`` elements, that holds the window."""
    _, inner = rows_of(window.axes, row)
    lo = window.first % row
    hi = lo + reach(inner)
    return (lo, hi) if hi < row else (0, row - 1)


def _candidates(xs: list[tuple[int, int]], ys: list[tuple[int, int]]) -> int:
    """Count the pairs of ranges that touch."""
    firsts = sorted(lo for lo, _ in ys)
    lasts = sorted(hi for _, hi in ys)
    return sum(bisect_right(firsts, hi) - bisect_left(lasts, lo) for lo, hi in xs)


def _sweep(xs: list[tuple[int, int]], ys: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the index pairs of ranges that touch, by ascending start."""
    events = sorted(
        [(lo, hi, 0, i) for i, (lo, hi) in enumerate(xs)] + [(lo, hi, 1, j) for j, (lo, hi) in enumerate(ys)]
    )
    open_x: list[tuple[int, int]] = []
    open_y: list[tuple[int, int]] = []
    for lo, hi, side, index in events:
        if side == 0:
            open_y = [held for held in open_y if held[0] >= lo]
            for _, j in open_y:
                yield index, j
            open_x.append((hi, index))
        else:
            open_x = [held for held in open_x if held[0] >= lo]
            for _, i in open_x:
                yield i, index
            open_y.append((hi, index))
