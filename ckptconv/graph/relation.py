"""Relate the elements of two sets of tensors: invert, compose, check, hash, cut."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.graph.box import Box
from ckptconv.graph.meet import Axes, Joint, Window, meet, nests, overlapping
from ckptconv.graph.tiling import tile

__all__ = ["Drop", "Pair", "Relation", "Spec", "join", "restrict"]

_SHOWN = 20
_NEXT = "compare the checkpoint with the model's configuration and the parallel layout; nothing was read"


@dataclass(frozen=True, slots=True)
class Spec:
    """The shape of a tensor and the name of its element type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Pair:
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
        return Pair(self.right, self.left, self.right_copy, self.left_copy)

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
                f"{_where(left)} has {left.numel} elements, {_where(right)} has {right.numel}", hint=_NEXT
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
                    f"{_where(left)} of size {left.size} and {_where(right)} of size {right.size} "
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


@dataclass(frozen=True, slots=True)
class Drop:
    """Elements that one side has alone, and why: a ZeRO tail, padding rows, an unused buffer."""

    box: Box
    reason: str


@dataclass(frozen=True, slots=True)
class Relation:
    """Relate two sets of tensors, element by element, by a flat list of pairs of boxes.

    Attributes:
        left: The tensors of the left side by name; in a conversion, the source.
        right: The tensors of the right side by name.
        pairs: Which elements are the same.
        left_only: Left elements that are deliberately unused.
        right_only: Right elements that have no source.
    """

    left: Mapping[str, Spec]
    right: Mapping[str, Spec]
    pairs: tuple[Pair, ...]
    left_only: tuple[Drop, ...] = ()
    right_only: tuple[Drop, ...] = ()

    @classmethod
    def union(cls, relations: Iterable[Relation]) -> Relation:
        """Put relations side by side.

        Raises:
            PlanError: if two of them give one tensor different shapes or types.
        """
        left: dict[str, Spec] = {}
        right: dict[str, Spec] = {}
        pairs: list[Pair] = []
        left_only: list[Drop] = []
        right_only: list[Drop] = []
        for one in relations:
            for specs, more in ((left, one.left), (right, one.right)):
                for name, spec in more.items():
                    if specs.setdefault(name, spec) != spec:
                        raise PlanError(f"{name} is {_spec(specs[name])} and {_spec(spec)}", hint=_NEXT)
            pairs += one.pairs
            left_only += one.left_only
            right_only += one.right_only
        return cls(left, right, tuple(pairs), tuple(left_only), tuple(right_only))

    def invert(self) -> Relation:
        """Read the relation from the other end."""
        pairs = tuple([pair.invert() for pair in self.pairs])
        return Relation(self.right, self.left, pairs, self.right_only, self.left_only)

    def select(self, names: Collection[str]) -> Relation:
        """Keep what concerns these right tensors, to work on a part.

        Left tensors that nothing kept touches are left out, and so are drops on the left: whether all of the
        left is accounted for is a question to the whole. ``a.select(b.left).compose(b)`` composes a part.
        """
        chosen = set(names)
        pairs = tuple([pair for pair in self.pairs if pair.right.tensor in chosen])
        touched = {pair.left.tensor for pair in pairs}
        return Relation(
            {name: spec for name, spec in self.left.items() if name in touched},
            {name: spec for name, spec in self.right.items() if name in chosen},
            pairs,
            right_only=tuple([drop for drop in self.right_only if drop.box.tensor in chosen]),
        )

    def compose(self, other: Relation) -> Relation:
        """Relate the left side of this relation to the right side of ``other`` through what they share.

        A drop of a shared element becomes a drop of the elements it is joined to, with the same reason; a
        pair made of a replica is a replica.

        Raises:
            PlanError: if the shared tensors differ in name, number of elements or type.
        """
        _agree(self.right, other.left)
        pairs: list[Pair] = []
        left_only, right_only = list(self.left_only), list(other.right_only)
        firsts = _by_tensor(self.pairs, self.right_only, at_right=True)
        seconds = _by_tensor(other.pairs, other.left_only, at_right=False)
        for name, (xs, x_items) in firsts.items():
            ys, y_items = seconds.get(name, ([], []))
            for i, j in overlapping(xs, ys):
                a, b = x_items[i], y_items[j]
                for joint in meet(xs[i], ys[j]):
                    if isinstance(a, Pair):
                        if isinstance(b, Pair):
                            pairs.append(_joined(a, b, joint))
                        elif not a.right_copy:
                            axes = [(n, s) for n, s, _ in joint.axes]
                            left_only.append(_dropped(a.left.tensor, joint.left, axes, b.reason))
                    elif isinstance(b, Pair) and not b.left_copy:
                        axes = [(n, s) for n, _, s in joint.axes]
                        right_only.append(_dropped(b.right.tensor, joint.right, axes, a.reason))
        return Relation(self.left, other.right, tuple(pairs), tuple(left_only), tuple(right_only))

    def check(self) -> None:
        """Refuse a relation that does not account for every element of both sides exactly once.

        Raises:
            PlanError: naming tensors and element positions, for the first problems found.
        """
        _refuse(list(self._problems()))

    def is_identity(self) -> bool:
        """Tell whether every element is joined to itself, up to declared copies and drops.

        Each pair that is no copy joins equal names and positions, and such pairs account, with the drops, for
        every element of both sides. The round trip ``a.compose(a.invert())`` of a sound relation is one.
        """
        if next(self._problems(), None) is not None:
            return False
        same = [pair for pair in self.pairs if _is_same(pair)]
        if sum(not pair.is_copy for pair in same) < sum(not pair.is_copy for pair in self.pairs):
            return False
        for specs, boxes, drops in (
            (self.left, [pair.left for pair in same], self.left_only),
            (self.right, [pair.right for pair in same], self.right_only),
        ):
            kept = _by_name([*((box, "") for box in boxes), *((drop.box, "") for drop in drops)])
            for name, spec in specs.items():
                windows = [_window(box) for box, _ in kept.get(name, [])]
                if tile(windows, spec.numel).gap is not None:
                    return False
        return True

    def digest(self) -> str:
        """Return the SHA-256 (hex) of all the relation says; the order of its lists does not matter."""
        lines = [json.dumps(["left", name, spec.shape, spec.dtype]) for name, spec in self.left.items()]
        lines += [json.dumps(["right", name, spec.shape, spec.dtype]) for name, spec in self.right.items()]
        for pair in self.pairs:
            ends = (*_box_list(pair.left), *_box_list(pair.right))
            lines.append(json.dumps(["pair", *ends, pair.left_copy, pair.right_copy]))
        for side, drops in (("left_only", self.left_only), ("right_only", self.right_only)):
            lines += [json.dumps([side, *_box_list(drop.box), drop.reason]) for drop in drops]
        return sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the relation as plain lists and dicts for JSON."""
        return {
            "left": {name: [list(spec.shape), spec.dtype] for name, spec in self.left.items()},
            "right": {name: [list(spec.shape), spec.dtype] for name, spec in self.right.items()},
            "pairs": [[_box_list(p.left), _box_list(p.right), p.left_copy, p.right_copy] for p in self.pairs],
            "left_only": [[_box_list(drop.box), drop.reason] for drop in self.left_only],
            "right_only": [[_box_list(drop.box), drop.reason] for drop in self.right_only],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Relation:
        """Read what `to_dict` gave.

        Raises:
            PlanError: if it is something else.
        """
        try:
            left, right = (
                {name: Spec(tuple(shape), dtype) for name, (shape, dtype) in data[side].items()}
                for side in ("left", "right")
            )
            pairs = tuple([Pair(_box_from(a), _box_from(b), c, d) for a, b, c, d in data["pairs"]])
            left_only, right_only = (
                tuple([Drop(_box_from(box), reason) for box, reason in data[side]])
                for side in ("left_only", "right_only")
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a serialised relation: {error!r}", hint="make the plan again") from error
        return cls(left, right, pairs, left_only, right_only)

    def _problems(self) -> Iterator[str]:
        """Yield what `check` refuses, a line each."""
        unsound: set[tuple[str, str]] = set()
        for pair in self.pairs:
            wrong = [
                *_box_problems("left", pair.left, self.left),
                *_box_problems("right", pair.right, self.right),
            ]
            if not wrong and pair.left.size != pair.right.size:
                try:
                    pair.aligned()
                except PlanError as error:
                    wrong.append(error.message)
            if wrong:
                unsound |= {("left", pair.left.tensor), ("right", pair.right.tensor)}
                yield from wrong
        for side, specs, drops in (
            ("left", self.left, self.left_only),
            ("right", self.right, self.right_only),
        ):
            for drop in drops:
                if wrong := list(_box_problems(side, drop.box, specs)):
                    unsound.add((side, drop.box.tensor))
                    yield from wrong
            covers, copies = _ends(self.pairs, drops, at_right=side == "right")
            for name, spec in specs.items():
                if (side, name) not in unsound:
                    yield from _tiling_problems(side, name, spec, covers.get(name, []))
            dropped = _by_name((drop.box, drop.reason) for drop in drops)
            for name in dropped.keys() & copies.keys():
                if name in specs and (side, name) not in unsound:
                    yield from _copied_drops(side, name, specs[name], copies[name], dropped[name])


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
    return [_joined(pair, pair, joint) for joint in joints]


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
    run = _window(Box.interval(right.tensor, lo, min(hi, right.last + 1)), address=True)
    joints = meet(_pair_window(pair, at_right=True), run)
    return [_joined(pair, pair, joint) for joint in sorted(joints, key=lambda joint: joint.right)]


_End = tuple[Box, str]
"""A box and what claims it: the tensor at the other end, or a drop."""


def _ends(
    pairs: Iterable[Pair], drops: Iterable[Drop], *, at_right: bool
) -> tuple[dict[str, list[_End]], dict[str, list[_End]]]:
    """Return what covers each tensor of one side, and what repeats parts of it."""
    covers: list[_End] = [(drop.box, f"the drop ({drop.reason})") for drop in drops]
    copies: list[_End] = []
    for pair in pairs:
        if at_right:
            (copies if pair.left_copy else covers).append((pair.right, pair.left.tensor))
        else:
            (copies if pair.right_copy else covers).append((pair.left, pair.right.tensor))
    return _by_name(covers), _by_name(copies)


def _by_name(ends: Iterable[_End]) -> dict[str, list[_End]]:
    found: dict[str, list[_End]] = {}
    for end in ends:
        if end[0].numel:
            found.setdefault(end[0].tensor, []).append(end)
    return found


def _box_problems(side: str, box: Box, specs: Mapping[str, Spec]) -> Iterator[str]:
    """Yield what is wrong with a box by itself."""
    spec = specs.get(box.tensor)
    if spec is None:
        yield f"{side} {box.tensor}: a box of {box.numel} elements, but no such tensor"
    elif box.numel == 0 or (box.is_contiguous and box.first >= 0 and box.last < spec.numel):
        return
    elif box.first < 0 or box.last >= spec.numel:
        yield (
            f"{side} {box.tensor}{list(spec.shape)}: a box of flat elements {box.first} to {box.last} "
            f"leaves the tensor of {spec.numel}"
        )
    elif not nests(_sorted_axes(box)):
        yield (
            f"{side} {box.tensor}{list(spec.shape)}: the box at element {_element(box.first, spec.shape)} "
            f"of size {box.size} and stride {box.stride} overlaps itself"
        )


def _tiling_problems(side: str, name: str, spec: Spec, claims: list[_End]) -> Iterator[str]:
    """Yield the first element of a tensor that nothing covers, and the first covered twice."""
    if len(claims) == 1 and claims[0][0].is_contiguous and claims[0][0].numel == spec.numel:
        return
    found = tile([_window(box) for box, _ in claims], spec.numel)
    tensor = f"{side} {name}{list(spec.shape)}"
    if found.gap is not None:
        others = sorted({what for _, what in claims})
        known = f" (others are by {_some(others)})" if others else ""
        yield f"{tensor}: element {_element(found.gap, spec.shape)} is covered by no pair or drop{known}"
    if found.double is not None:
        index, one, two = found.double
        both = f"by {claims[one][1]} and {claims[two][1]}"
        yield f"{tensor}: element {_element(index, spec.shape)} is covered twice, {both}"


def _copied_drops(side: str, name: str, spec: Spec, copies: list[_End], dropped: list[_End]) -> Iterator[str]:
    """Yield the copies that repeat elements which, a drop says, have no other end."""
    xs = [_window(box) for box, _ in copies]
    ys = [_window(box, address=True) for box, _ in dropped]
    for i, j in overlapping(xs, ys):
        if common := meet(xs[i], ys[j]):
            at = _element(min(joint.right for joint in common), spec.shape)
            yield (
                f"{side} {name}{list(spec.shape)}: element {at} is in a copy by {copies[i][1]}, "
                f"but dropped: {dropped[j][1]}"
            )


def _agree(ours: Mapping[str, Spec], theirs: Mapping[str, Spec]) -> None:
    """Refuse to compose relations that speak of different tensors."""
    problems = [f"{name}: only the first relation has it" for name in ours.keys() - theirs.keys()]
    problems += [f"{name}: only the second relation has it" for name in theirs.keys() - ours.keys()]
    for name in ours.keys() & theirs.keys():
        one, two = ours[name], theirs[name]
        if one != two and (one.numel, one.dtype) != (two.numel, two.dtype):
            problems.append(f"{name}: {_spec(one)} in the first relation, {_spec(two)} in the second")
    _refuse(sorted(problems))


def _refuse(problems: list[str]) -> None:
    """Raise the problems as one error, if there are any."""
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise PlanError("\n".join([*problems[:_SHOWN], *more]), hint=_NEXT)


def _by_tensor(
    pairs: Iterable[Pair], drops: Iterable[Drop], *, at_right: bool
) -> dict[str, tuple[list[Window], list[Pair | Drop]]]:
    """Group pairs and drops by the tensor they touch on one side."""
    found: dict[str, tuple[list[Window], list[Pair | Drop]]] = {}
    for pair in pairs:
        box = pair.right if at_right else pair.left
        if box.numel:
            windows, items = found.setdefault(box.tensor, ([], []))
            windows.append(_pair_window(pair, at_right=at_right))
            items.append(pair)
    for drop in drops:
        if drop.box.numel:
            windows, items = found.setdefault(drop.box.tensor, ([], []))
            windows.append(_window(drop.box, address=True))
            items.append(drop)
    return found


def _pair_window(pair: Pair, *, at_right: bool) -> Window:
    """See a pair from one of its tensors; the other end is the second address."""
    size, left, right = pair.aligned()
    here, there = (pair.right, pair.left) if at_right else (pair.left, pair.right)
    strides = (right, left) if at_right else (left, right)
    if len(size) <= 1:
        return Window(here.offset, there.offset, tuple(zip(size, *strides, strict=True)))
    axes = _merged(sorted(zip(size, *strides, strict=True), key=_stride, reverse=True))
    if not nests(axes):
        raise PlanError(f"{_where(here)} of size {here.size} and stride {here.stride} overlaps itself")
    return Window(here.offset, there.offset, axes)


def _window(box: Box, *, address: bool = False) -> Window:
    """See a box by itself; with ``address`` the second address is the flat index."""
    axes = _sorted_axes(box)
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


def _sorted_axes(box: Box) -> Axes:
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


def _joined(first: Pair, second: Pair, joint: Joint) -> Pair:
    """Pair the left of one pair with the right of another where they meet; right elements ascend."""
    axes = sorted(joint.axes, key=lambda axis: -axis[2]) if len(joint.axes) > 1 else joint.axes
    return Pair(
        Box.strided(first.left.tensor, joint.left, [(n, a) for n, a, _ in axes]),
        Box.strided(second.right.tensor, joint.right, [(n, b) for n, _, b in axes]),
        first.left_copy or second.left_copy,
        first.right_copy or second.right_copy,
    )


def _dropped(tensor: str, offset: int, axes: Iterable[tuple[int, int]], reason: str) -> Drop:
    ordered = sorted(axes, key=lambda axis: -axis[1])
    return Drop(Box.strided(tensor, offset, ordered), reason)


def _is_same(pair: Pair) -> bool:
    """Whether a pair joins each of its elements to itself."""
    left, right = pair.left, pair.right
    return left == right or (
        (left.tensor, left.offset, left.numel) == (right.tensor, right.offset, right.numel)
        and all(n == 1 or a == b for n, a, b in zip(*pair.aligned(), strict=True))
    )


def _element(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a flat index as one along each axis."""
    found: list[int] = []
    for n in reversed(shape):
        index, at = divmod(index, n)
        found.append(at)
    return tuple(reversed(found))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _spec(spec: Spec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"


def _where(box: Box) -> str:
    return f"the box of {box.tensor} at flat element {box.offset}"


def _box_list(box: Box) -> list[Any]:
    return [box.tensor, box.offset, list(box.size), list(box.stride)]


def _box_from(data: list[Any]) -> Box:
    tensor, offset, size, stride = data
    if len(size) != len(stride):
        raise ValueError(f"a box of {tensor} has {len(size)} sizes and {len(stride)} strides")
    return Box(tensor, offset, tuple(size), tuple(stride))
