"""Relate the elements of two sets of tensors: invert, compose, check, hash, cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from itertools import pairwise
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.records import dataclass
from ckptconv.relations.box import Box, as_box
from ckptconv.relations.gather import Gathering, Stamp
from ckptconv.relations.meet import Window, meet, overlapping
from ckptconv.relations.pair import (
    Drop,
    Pair,
    Spec,
    Where,
    as_pair,
    ends,
    is_same,
    pair_window,
    spec_text,
    window,
)
from ckptconv.relations.problems import by_name, problems, refuse
from ckptconv.relations.tiling import tile

__all__ = ["Relation"]

_RUN = (1,)  # the stride of elements one after the other
_MANY = 1 << 14  # parts of a tensor: one with more has no equal, those of the layers have a few thousand
_KNOWN = 4096  # forms of tensors kept while two relations are composed


@dataclass(frozen=True, slots=True, repr=False)
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

    def __repr__(self) -> str:
        return f"<Relation of {len(self.left):,} to {len(self.right):,} tensors by {len(self.pairs):,} pairs>"

    @classmethod
    def union(cls, relations: Iterable[Relation]) -> Relation:
        """Put relations side by side.

        Raises:
            PlanError: if two of them give one tensor different shapes or types.
        """
        together = Gathering()
        for one in relations:
            together.add(one.left, one.right, one.pairs, one.left_only, one.right_only)
        return cls.gathered(together)

    @classmethod
    def gathered(cls, parts: Gathering) -> Relation:
        """Make one relation of what was collected."""
        sides = tuple(parts.pairs), tuple(parts.left_only), tuple(parts.right_only)
        return cls(parts.left, parts.right, *sides)

    def stamp(self, lefts: Sequence[str], rights: Sequence[str]) -> Stamp:
        """Take the names out, to put others in (`Gathering.stamp`); these are its own, in their order."""
        sides = self.pairs, self.left_only, self.right_only
        return Stamp(self.left, self.right, *sides, lefts=lefts, rights=rights)

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
        # A model's layers and experts are cut alike: what meets where is found once for all of them.
        known: dict[tuple[_Form, _Form], list[_Met]] = {}
        for name, one in firsts.items():
            two = seconds.get(name, [])
            if (through := _through(one, two)) is not None:
                pairs.append(through)
                continue
            xs = one if isinstance(one, list) else [one]
            ys = two if isinstance(two, list) else [two]
            for i, j, left, right in _met(xs, ys, known):
                a, b = xs[i], ys[j]
                if isinstance(a, Pair):
                    if isinstance(b, Pair):
                        here, there = as_box((a.left.tensor, *left)), as_box((b.right.tensor, *right))
                        copies = a.left_copy or b.left_copy, a.right_copy or b.right_copy
                        pairs.append(as_pair((here, there, *copies)))
                    elif not a.right_copy:
                        left_only.append(Drop(Box(a.left.tensor, *left), b.reason))
                elif isinstance(b, Pair) and not b.left_copy:
                    right_only.append(Drop(Box(b.right.tensor, *right), a.reason))
        return Relation(self.left, other.right, tuple(pairs), tuple(left_only), tuple(right_only))

    def check(self) -> None:
        """Refuse a relation that does not account for every element of both sides exactly once.

        Raises:
            PlanError: naming tensors and element positions, for the first problems found.
        """
        refuse(list(self._problems()))

    def _problems(self) -> Iterator[str]:
        return problems(self.left, self.right, self.pairs, self.left_only, self.right_only)

    def is_identity(self) -> bool:
        """Tell whether every element is joined to itself, up to declared copies and drops.

        Each pair that is no copy joins equal names and positions, and such pairs account, with the drops, for
        every element of both sides. The round trip ``a.compose(a.invert())`` of a sound relation is one.
        """
        if next(self._problems(), None) is not None:
            return False
        same = [pair for pair in self.pairs if is_same(pair)]
        if sum(not pair.is_copy for pair in same) < sum(not pair.is_copy for pair in self.pairs):
            return False
        for specs, boxes, drops in (
            (self.left, [pair.left for pair in same], self.left_only),
            (self.right, [pair.right for pair in same], self.right_only),
        ):
            kept = by_name([*((box, "") for box in boxes), *((drop.box, "") for drop in drops)])
            for name, spec in specs.items():
                windows = [window(box) for box, _ in kept.get(name, [])]
                if tile(windows, spec.numel).gap is not None:
                    return False
        return True

    def digest(self) -> str:
        """Return the SHA-256 (hex) of all the relation says; the order of its lists does not matter."""
        return sha256(b"".join(sorted(self._lines()))).hexdigest()

    def _lines(self) -> Iterator[bytes]:
        """Yield the digest of each of its statements; a model of many shards has millions."""
        for side, specs in (("left", self.left), ("right", self.right)):
            for name, spec in specs.items():
                yield _digest(f"{side} {name!r} {spec.shape} {spec.dtype!r}")
        for p in self.pairs:
            a, b = p.left, p.right
            yield _digest(
                f"pair {a.tensor!r} {a.offset} {a.size} {a.stride} "
                f"{b.tensor!r} {b.offset} {b.size} {b.stride} {p.left_copy} {p.right_copy}"
            )
        for side, drops in (("left_only", self.left_only), ("right_only", self.right_only)):
            for d in drops:
                box = d.box
                yield _digest(f"{side} {box.tensor!r} {box.offset} {box.size} {box.stride} {d.reason!r}")

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


def _agree(ours: Mapping[str, Spec], theirs: Mapping[str, Spec]) -> None:
    """Refuse to compose relations that speak of different tensors."""
    problems = [f"{name}: only the first relation has it" for name in ours.keys() - theirs.keys()]
    problems += [f"{name}: only the second relation has it" for name in theirs.keys() - ours.keys()]
    for name, one in ours.items():
        two = theirs.get(name, one)
        if one != two and (one.numel, one.dtype) != (two.numel, two.dtype):
            problems.append(f"{name}: {spec_text(one)} in the first relation, {spec_text(two)} in the second")
    refuse(sorted(problems))


# A side of a tensor: pairs and drops that touch it.
_Side = list[Pair | Drop]
# The same, without the names of tensors.
_Form = tuple[object, ...]
# Which item of one side meets which of the other, and where in the tensors at their far ends.
_Met = tuple[int, int, Where, Where]


def _by_tensor(
    pairs: Iterable[Pair], drops: Iterable[Drop], *, at_right: bool
) -> dict[str, Pair | Drop | _Side]:
    """Group pairs and drops by the tensor they touch on one side; one alone is itself."""
    found: dict[str, Pair | Drop | _Side] = {}

    def touch(tensor: str, one: Pair | Drop) -> None:
        held = found.get(tensor)
        if held is None:
            found[tensor] = one
        elif isinstance(held, list):
            held.append(one)
        else:
            found[tensor] = [held, one]

    for pair in pairs:
        box = pair[1] if at_right else pair[0]
        if 0 not in box.size:
            touch(box.tensor, pair)
    for drop in drops:
        if 0 not in drop.box.size:
            touch(drop.box.tensor, drop)
    return found


def _through(one: Pair | Drop | _Side, two: Pair | Drop | _Side) -> Pair | None:
    """Join two pairs that are all a tensor has, if each joins a run of elements, and both the same of it."""
    if not (isinstance(one, Pair) and isinstance(two, Pair)):
        return None
    left, here, one_left, one_right = one
    there, right, two_left, two_right = two
    if here.offset != there.offset or here.size != there.size:
        return None
    if left.stride == here.stride == there.stride == right.stride == _RUN:
        return as_pair((left, right, one_left or two_left, one_right or two_right))
    return None


def _form(side: _Side) -> _Form:
    return tuple([(one[0][1:], one[1][1:] if isinstance(one, Pair) else None) for one in side])


def _met(xs: _Side, ys: _Side, known: dict[tuple[_Form, _Form], list[_Met]]) -> Iterable[_Met]:
    """Return where two sides of a tensor meet, as is known of others of the same form."""
    if len(xs) > _MANY:
        return _meetings(xs, ys)
    form = _form(xs), _form(ys)
    met = known.get(form)
    if met is None:
        if len(known) >= _KNOWN:
            known.clear()
        met = known[form] = list(_meetings(xs, ys))
    return met


def _meetings(xs: _Side, ys: _Side) -> Iterator[_Met]:
    """Yield where two sides of a tensor meet."""
    if (x_runs := _runs(xs, at_right=True)) and (y_runs := _runs(ys, at_right=False)):
        yield from _meeting_runs(x_runs, y_runs)
        return
    ours = [_window(x, at_right=True) for x in xs]
    theirs = [_window(y, at_right=False) for y in ys]
    for i, j in overlapping(ours, theirs):
        for joint in meet(ours[i], theirs[j]):
            if isinstance(xs[i], Pair) and isinstance(ys[j], Pair):
                yield i, j, *ends(joint)
            else:  # by themselves, for the other is a drop
                yield (
                    i,
                    j,
                    _descending(joint.left, [(n, s) for n, s, _ in joint.axes]),
                    _descending(joint.right, [(n, s) for n, _, s in joint.axes]),
                )


# A run of elements of a shared tensor: its first and last, where it is at the far end, the item's number.
_Run = tuple[int, int, int, int]


def _runs(side: _Side, *, at_right: bool) -> list[_Run] | None:
    """Return a side by ascending elements if its items are pairs of runs and none overlaps another."""
    found: list[_Run] = []
    for i, one in enumerate(side):
        if not isinstance(one, Pair):
            return None
        here, there = (one.right, one.left) if at_right else (one.left, one.right)
        if not here.stride == there.stride == _RUN or here.size != there.size:
            return None
        found.append((here.offset, here.offset + here.size[0] - 1, there.offset, i))
    found.sort()
    return None if any(b[0] <= a[1] for a, b in pairwise(found)) else found


def _meeting_runs(xs: list[_Run], ys: list[_Run]) -> Iterator[_Met]:
    """Yield where runs meet, by ascending elements."""
    at = 0
    for first, last, left, i in xs:
        while at < len(ys) and ys[at][1] < first:
            at += 1
        for k in range(at, len(ys)):
            lo, hi, right, j = ys[k]
            if lo > last:
                break
            start, count = max(first, lo), min(last, hi) - max(first, lo) + 1
            size, stride = ((count,), _RUN) if count > 1 else ((), ())
            yield i, j, (left + start - first, size, stride), (right + start - lo, size, stride)


def _window(one: Pair | Drop, *, at_right: bool) -> Window:
    return pair_window(one, at_right=at_right) if isinstance(one, Pair) else window(one.box, address=True)


def _descending(offset: int, axes: Iterable[tuple[int, int]]) -> Where:
    box = Box.strided("", offset, sorted(axes, key=lambda axis: -axis[1]))
    return box.offset, box.size, box.stride


def _digest(statement: str) -> bytes:
    return blake2b(statement.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def _box_list(box: Box) -> list[Any]:
    return [box.tensor, box.offset, list(box.size), list(box.stride)]


def _box_from(data: list[Any]) -> Box:
    tensor, offset, size, stride = data
    if len(size) != len(stride):
        raise ValueError(f"a box of {tensor} has {len(size)} sizes and {len(stride)} strides")
    return Box(tensor, offset, tuple(size), tuple(stride))
