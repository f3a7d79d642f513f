"""Say from which file, rank, box and bytes each part of a tensor comes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ckptconv.containers.base import contiguous_stride
from ckptconv.containers.decoded import Decoded
from ckptconv.containers.stored import Stored
from ckptconv.numbers.codecs import codec
from ckptconv.plans.plan import Plan
from ckptconv.plans.shown import Shown
from ckptconv.records import dataclass
from ckptconv.relations import Box, Pair
from ckptconv.relations.meet import meet
from ckptconv.relations.pair import sorted_axes, window

__all__ = ["Explained", "FileRange", "Part", "Piece", "byte_ranges", "explain", "part_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """Address a part of a tensor.

    Attributes:
        shape: The tensor's shape.
        slices: Start, stop and step along each axis, if the part is a slice or a series of them.
        box: Offset, sizes and strides in elements.
        series: How many slices, along which axis, and how far apart; None for a single one.
    """

    shape: tuple[int, ...]
    slices: tuple[tuple[int, int, int], ...] | None
    box: Box
    series: tuple[int, int, int] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.box.numel == prod(self.shape)

    def __str__(self) -> str:
        if self.slices is None:
            sizes, strides = list(self.box.size), list(self.box.stride)
            return f"offset {self.box.offset}, size {sizes}, stride {strides}"
        found = []
        for n, (start, stop, step) in zip(self.shape, self.slices, strict=True):
            plain = ":" if (start, stop) == (0, n) else f"{start}:{stop}"
            found.append(f"{start}:{stop}:{step}" if step > 1 else plain)
        text = f"[{', '.join(found)}]"
        if self.series is None:
            return text
        count, axis, distance = self.series
        return f"{text} x {count}, every {distance} of axis {axis}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        if self.slices is not None:
            found: dict[str, Any] = {"slice": [list(s) for s in self.slices]}
            if self.series is not None:
                count, axis, distance = self.series
                found["series"] = {"count": count, "axis": axis, "distance": distance}
            return found
        return {
            "offset": self.box.offset,
            "size": list(self.box.size),
            "stride": list(self.box.stride),
        }


@dataclass(frozen=True, slots=True)
class FileRange:
    """Locate bytes of one file.

    Attributes:
        path: The file.
        first: The first byte.
        end: One past the last.
        nbytes: How many of them belong to the part; all, if they are one run.
        runs: How many runs they are.
    """

    path: str
    first: int
    end: int
    nbytes: int
    runs: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Join a part of a tensor to the part of a stored tensor it is.

    Attributes:
        stored: The stored tensor's name.
        ranks: The ranks whose files it lies in; empty where files are not of ranks.
        copy: Whether another piece provides these elements, and this one only must equal it.
        here: The part of the tensor.
        there: The part of the stored tensor.
        reordered: Whether the elements are stored in another order, as those of a transpose are.
        dtype: Element type as stored.
        ranges: Where its bytes lie.
        role: What it is of a quantised weight: its codes, scales, zero points.
    """

    stored: str
    ranks: tuple[str, ...]
    copy: bool
    here: Part
    there: Part
    reordered: bool
    dtype: str
    ranges: tuple[FileRange, ...]
    role: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "stored": self.stored,
            "ranks": list(self.ranks),
            "copy": self.copy,
            "elements": self.here.box.numel,
            "part": self.here.to_dict(),
            "stored_shape": list(self.there.shape),
            "stored_part": self.there.to_dict(),
            "stored_dtype": self.dtype,
            "reordered": self.reordered,
            **({"role": self.role} if self.role else {}),
            "files": [
                {"path": r.path, "first": r.first, "end": r.end, "bytes": r.nbytes, "runs": r.runs}
                for r in self.ranges
            ],
        }


@dataclass(frozen=True, slots=True, repr=False)
class Explained(Shown):
    """Hold where a tensor comes from.

    Attributes:
        name: The tensor.
        names: Whose name that is: ``Hugging Face``, or the producer.
        asked: The name asked for, where it only shares this tensor's data; else None.
        shape: Its shape.
        dtype: Its element type.
        casts: Types its values pass through, stored one first; empty if it is stored in its own.
        pieces: Its parts, in order; copies after what they repeat.
        absent: Elements that are stored nowhere, by reason: padding.
        quantised: How it is, where its values are decoded.
    """

    name: str
    names: str
    asked: str | None
    shape: tuple[int, ...]
    dtype: str
    casts: tuple[str, ...]
    pieces: tuple[Piece, ...]
    absent: Mapping[str, int]
    quantised: str = ""

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        return {
            "name": self.name,
            "shape": "x".join(map(str, self.shape)) or "scalar",
            "dtype": self.dtype,
            "casts": " -> ".join(self.casts),
            "pieces": f"{len(self.pieces):,}",
            "absent": ", ".join(f"{n:,} {why}" for why, n in self.absent.items()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "name": self.name,
            "names": self.names,
            "asked": self.asked,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "casts": list(self.casts),
            "absent": dict(self.absent),
            **({"quantised": self.quantised} if self.quantised else {}),
            "pieces": [p.to_dict() for p in self.pieces],
        }


def explain(plan: Plan, wanted: Sequence[str], names: str, ranks: Mapping[str, str]) -> list[Explained]:
    """Explain tensors of a plan; nothing is read.

    Args:
        plan: Relates stored tensors to tensors by name.
        wanted: The tensors.
        names: Whose names those are.
        ranks: The rank each file is of, by its path.

    Raises:
        KeyError: if there is no such tensor.
    """
    pairs: dict[str, list[Pair]] = {n: [] for n in wanted}
    absent: dict[str, dict[str, int]] = {n: {} for n in wanted}
    for pair in plan.relation.pairs:
        if pair.right.tensor in pairs and pair.right.numel:
            pairs[pair.right.tensor].append(pair)
    for drop in plan.relation.right_only:
        if (counts := absent.get(drop.box.tensor)) is not None:
            counts[drop.reason] = counts.get(drop.reason, 0) + drop.box.numel
    made = []
    for name in wanted:
        spec = plan.relation.right[name]
        own = sorted(pairs[name], key=lambda p: (p.right.first, p.left_copy))
        pieces = tuple(i for p in own for i in _pieces(p, spec.shape, plan.stored[p.left.tensor], ranks))
        kinds = [s.kind for p in own if isinstance(s := plan.stored[p.left.tensor], Decoded)]
        casts = tuple(d.name for d in plan.casts.get(name, ()))
        made.append(
            Explained(name, names, None, spec.shape, spec.dtype, casts, pieces, absent[name], *kinds[:1])
        )
    return made


def _pieces(pair: Pair, shape: tuple[int, ...], stored: Stored, ranks: Mapping[str, str]) -> Iterator[Piece]:
    """Yield what a part is of: itself, or codes and scales."""
    if not isinstance(stored, Decoded) or not pair.left.numel:
        yield _piece(pair, shape, stored, ranks)
        return
    columns = stored.params["columns"]
    row, end = pair.left.first // columns, pair.left.last // columns + 1
    left, right = 0, columns
    if end - row == 1:
        left, right = pair.left.first % columns, pair.left.last % columns + 1
    needs = codec(stored.codec).needs(stored.params, (row, end, left, right))
    for role, (top, bottom, first, last) in needs.items():
        of, name = stored.operands[role], stored.names[role]
        box = Box.of(name, of.shape, start=(top, first), size=(bottom - top, last - first))
        yield Piece(
            name,
            (),
            pair.left_copy,
            part_of(shape, pair.right),
            part_of(of.shape, box),
            False,
            of.dtype.name,
            tuple(byte_ranges(of, box)),
            role,
        )


def _piece(pair: Pair, shape: tuple[int, ...], stored: Stored, ranks: Mapping[str, str]) -> Piece:
    ranges = tuple(byte_ranges(stored, pair.left))
    found = dict.fromkeys(ranks[r.path] for r in ranges if r.path in ranks)
    return Piece(
        pair.left.tensor,
        tuple(found),
        pair.left_copy,
        part_of(shape, pair.right),
        part_of(stored.shape, pair.left),
        _reordered(pair),
        stored.dtype.name,
        ranges,
    )


def _reordered(pair: Pair) -> bool:
    """Whether the axes of the two boxes do not descend together."""
    size, left, right = pair.aligned()
    by_left = sorted((i for i, n in enumerate(size) if n > 1), key=lambda i: -left[i])
    return by_left != sorted(by_left, key=lambda i: -right[i])


def part_of(shape: Sequence[int], box: Box) -> Part:
    """Say what part of a tensor of this shape a box is."""
    slices = _slices(shape, box)
    if slices is not None:
        return Part(tuple(shape), slices, box)
    axes = [(n, s) for n, s, _ in sorted_axes(box)]
    for at, (count, stride) in enumerate(axes):
        rest = Box.strided(box.tensor, box.offset, axes[:at] + axes[at + 1 :])
        units = contiguous_stride(tuple(shape))
        axis = next((i for i, u in enumerate(units) if stride % u == 0), None)
        slices = _slices(shape, rest)
        if slices is None or axis is None:
            continue
        distance = stride // units[axis]
        if slices[axis][1] + (count - 1) * distance <= shape[axis]:
            return Part(tuple(shape), slices, box, (count, axis, distance))
    return Part(tuple(shape), None, box)


def _slices(shape: Sequence[int], box: Box) -> tuple[tuple[int, int, int], ...] | None:
    """Return start, stop and step along each axis, or None if the box is no such slice."""
    if not box.numel:
        return None
    axes = [(n, s) for n, s, _ in sorted_axes(box)]
    units = contiguous_stride(tuple(shape))
    found: list[tuple[int, int, int]] = []
    for dim, unit in zip(reversed(shape), reversed(units), strict=True):
        start = box.offset // unit % dim
        if not axes or axes[-1][1] >= unit * dim:
            found.append((start, start + 1, 1))
            continue
        count, stride = axes.pop()
        if stride % unit:
            return None
        step = stride // unit
        fit = -((start - dim) // step)
        if count > fit:
            if step * fit != dim or count % fit:
                return None
            axes.append((count // fit, dim * unit))
            count = fit
        found.append((start, start + (count - 1) * step + 1, step))
    return None if axes else tuple(reversed(found))


def byte_ranges(stored: Stored, box: Box) -> list[FileRange]:
    """Locate the bytes of a box of a stored tensor, one range for each file, in the order of elements."""
    if not box.numel:
        return []
    starts = [e.start for e in stored.extents]
    item = stored.dtype.itemsize
    inside = window(box, address=True)
    found: dict[str, FileRange] = {}
    for at in range(max(0, bisect_right(starts, box.first) - 1), bisect_left(starts, box.last + 1)):
        extent = stored.extents[at]
        end = starts[at + 1] if at + 1 < len(starts) else stored.numel
        run = window(Box.interval(box.tensor, extent.start, end), address=True)
        for joint in meet(inside, run):
            axes = sorted(joint.axes, key=lambda a: -a[1])
            count = prod(n for n, _, _ in axes)
            length = axes[-1][0] if axes and axes[-1][1] == 1 else 1
            first = extent.offset + (joint.left - extent.start) * item
            last = first + (sum((n - 1) * s for n, s, _ in axes) + 1) * item
            more = FileRange(extent.path, first, last, count * item, count // length)
            held = found.get(extent.path)
            found[extent.path] = more if held is None else _together(held, more)
    return list(found.values())


def _together(one: FileRange, two: FileRange) -> FileRange:
    touching = one.runs == two.runs == 1 and (one.end == two.first or two.end == one.first)
    runs = 1 if touching else one.runs + two.runs - (one.end == two.first)
    return FileRange(
        one.path, min(one.first, two.first), max(one.end, two.end), one.nbytes + two.nbytes, runs
    )
