"""Check that strided windows tile a tensor: no element missing, none covered twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ckptconv.records import dataclass
from ckptconv.relations.meet import Axes, Joint, Window, meet_axes, reach, rows_of

__all__ = ["Tiling", "tile"]


@dataclass(slots=True)
class Tiling:
    """What keeps windows from tiling a tensor, each at its lowest flat index.

    Attributes:
        gap: An element in no window.
        double: An element in two windows, and the numbers of the two.
    """

    gap: int | None = None
    double: tuple[int, int, int] | None = None

    def _missing(self, index: int) -> None:
        if self.gap is None or index < self.gap:
            self.gap = index

    def _twice(self, index: int, one: int, two: int) -> None:
        if self.double is None or index < self.double[0]:
            self.double = (index, min(one, two), max(one, two))


class _Tile(NamedTuple):
    first: int
    last: int
    axes: Axes
    number: int


class _Strip(NamedTuple):
    """Rows ``row`` to ``end`` of a grid, each holding the same columns."""

    tile: _Tile
    row: int
    end: int


def tile(windows: Sequence[Window], numel: int) -> Tiling:
    """Check that nested windows cover elements 0 to ``numel`` exactly once, without visiting elements."""
    found = Tiling()
    tiles = [_Tile(w.first, w.last, w.axes, i) for i, w in enumerate(windows)]
    _tile(tiles, 0, numel, 0, found)
    return found


def _tile(tiles: list[_Tile], lo: int, hi: int, base: int, found: Tiling) -> None:
    """Check the tiling of ``lo`` to ``hi``; ``base`` makes an index absolute."""
    edge = lo
    for group in _groups(tiles):
        first = group[0].first
        if first > edge:
            found._missing(base + edge)
        edge = max(t.last for t in group) + 1
        if len(group) == 1:
            if (hole := _hole(group[0])) is not None:
                found._missing(base + hole)
        elif all(_hole(t) is None for t in group):
            _tile_runs(group, base, found)
        else:
            _tile_rows(group, first, edge, base, found)
    if edge < hi:
        found._missing(base + edge)


def _groups(tiles: list[_Tile]) -> Iterator[list[_Tile]]:
    """Yield the tiles by ascending start, those whose ranges of indices overlap together."""
    group: list[_Tile] = []
    last = -1
    for one in sorted(tiles):
        if group and one.first > last:
            yield group
            group = []
        group.append(one)
        last = max(last, one.last) if len(group) > 1 else one.last
    if group:
        yield group


def _hole(one: _Tile) -> int | None:
    """Return the lowest index in the tile's range that it does not hold."""
    run = 1
    for n, stride, _ in reversed(one.axes):
        if stride != run:
            return one.first + run
        run *= n
    return None


def _tile_runs(group: list[_Tile], base: int, found: Tiling) -> None:
    """Report the first overlap among contiguous tiles."""
    held = group[0]
    for one in group[1:]:
        if one.first <= held.last:
            found._twice(base + one.first, held.number, one.number)
        if one.last > held.last:
            held = one


def _tile_rows(group: list[_Tile], first: int, edge: int, base: int, found: Tiling) -> None:
    """Check tiles whose ranges interleave: fold them into rows of the largest stride, then into columns."""
    row = max(t.axes[0][1] for t in group if t.axes)
    rows = -((first - edge) // row)
    grid = ((rows, row, row), (row, 1, 1))
    strips: list[_Strip] = []
    for one in group:
        top, column = divmod(one.first - first, row)
        tall, inner = rows_of(one.axes, row)
        if (right := column + reach(inner)) < row:
            strips.append(_Strip(_Tile(column, right, inner, one.number), top, top + tall))
            continue
        joints: list[Joint] = []
        meet_axes(grid, one.axes, one.first - first, 0, 0, (), False, joints)  # not gathered across rows
        for joint in joints:
            top, column = divmod(joint.left, row)
            tall, inner = rows_of(joint.axes, row)
            strips.append(_Strip(_Tile(column, column + reach(inner), inner, one.number), top, top + tall))
    if missing := first + rows * row - edge:  # the last row ends early: fill it, so that the grid is full
        filler = _Tile(row - missing, row - 1, ((missing, 1, 1),) if missing > 1 else (), -1)
        strips.append(_Strip(filler, rows - 1, rows))
    by_number: dict[_Tile, list[_Strip]] = {}
    for strip in strips:
        by_number.setdefault(strip.tile, []).append(strip)
    column = 0
    for block in _groups(list(by_number)):
        start, column_end = block[0].first, max(t.last for t in block) + 1
        if start > column:
            found._missing(base + first + column)
        column = column_end
        held = [strip for one in block for strip in by_number[one]]
        _tile_block(held, (start, column_end), rows, row, base + first, found)


def _tile_block(
    strips: list[_Strip], columns: tuple[int, int], rows: int, row: int, base: int, found: Tiling
) -> None:
    """Check one range of columns over all rows, between the rows where a strip starts or ends."""
    starts: dict[int, list[_Strip]] = {}
    for strip in strips:
        starts.setdefault(strip.row, []).append(strip)
    cuts = sorted({0, rows, *starts, *(strip.end for strip in strips)})
    active: list[_Strip] = []
    for top in cuts[:-1]:
        active = [strip for strip in active if strip.end > top] + starts.get(top, [])
        _tile([strip.tile for strip in active], *columns, base + top * row, found)
