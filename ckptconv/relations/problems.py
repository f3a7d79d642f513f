"""Find what is wrong with a relation: elements that nothing covers, or that are covered twice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from ckptconv.errors import PlanError
from ckptconv.relations.box import Box
from ckptconv.relations.meet import meet, nests, overlapping
from ckptconv.relations.pair import NEXT, Drop, Pair, Spec, Where, sorted_axes, window
from ckptconv.relations.tiling import tile

__all__ = ["by_name", "problems", "refuse"]

_SHOWN = 20
_RUN = (1,)  # the stride of elements one after the other
_FORMS = 1 << 14  # kept of what was found to be sound

_Covers = dict[str, list[Where]]
"""The boxes that cover each tensor."""

_End = tuple[Box, str]
"""A box and what claims it: the tensor at the other end, or a drop."""


def problems(
    left: Mapping[str, Spec],
    right: Mapping[str, Spec],
    pairs: Collection[Pair],
    left_only: Collection[Drop],
    right_only: Collection[Drop],
) -> Iterator[str]:
    """Yield what is wrong with a relation of these parts, a line each."""
    unsound: set[tuple[str, str]] = set()
    # The boxes of a model's many layers, experts and ranks have few forms; each is looked at once.
    sound: set[tuple[object, ...]] = set()
    left_covers: _Covers = {}
    right_covers: _Covers = {}
    for pair in pairs:
        a, b, left_copy, right_copy = pair
        here, there = a[1:], b[1:]
        if not right_copy:
            left_covers.setdefault(a.tensor, []).append(here)
        if not left_copy:
            right_covers.setdefault(b.tensor, []).append(there)
        one, two = left.get(a.tensor), right.get(b.tensor)
        form = None
        if one is not None and two is not None:
            form = (here, one.shape, there, two.shape)
            if form in sound:
                continue
            if a.size == b.size and _is_run_within(a, one) and _is_run_within(b, two):
                if len(sound) < _FORMS:
                    sound.add(form)
                continue
        wrong = [*_box_problems("left", a, left), *_box_problems("right", b, right)]
        if not wrong and a.size != b.size:
            try:
                pair.aligned()
            except PlanError as error:
                wrong.append(error.message)
        if wrong:
            unsound |= {("left", a.tensor), ("right", b.tensor)}
            yield from wrong
        elif form is not None and len(sound) < _FORMS:
            sound.add(form)
    tiled: set[tuple[object, ...]] = set()
    for side, specs, drops, covers in (
        ("left", left, left_only, left_covers),
        ("right", right, right_only, right_covers),
    ):
        for drop in drops:
            covers.setdefault(drop.box.tensor, []).append(drop.box[1:])
            if wrong := list(_box_problems(side, drop.box, specs)):
                unsound.add((side, drop.box.tensor))
                yield from wrong
        faulty = [
            name
            for name, spec in specs.items()
            if (side, name) not in unsound and not _is_tiled(spec, covers.get(name, []), tiled)
        ]
        if not faulty and not drops:
            continue
        claims, copies = _ends(pairs, drops, at_right=side == "right")
        for name in faulty:
            yield from _tiling_problems(side, name, specs[name], claims.get(name, []))
        dropped = by_name((drop.box, drop.reason) for drop in drops)
        for name in dropped.keys() & copies.keys():
            if name in specs and (side, name) not in unsound:
                yield from _copied_drops(side, name, specs[name], copies[name], dropped[name])


def refuse(problems: list[str]) -> None:
    """Raise the problems as one error, if there are any."""
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise PlanError([*problems[:_SHOWN], *more], hint=NEXT)


def _ends(
    pairs: Iterable[Pair], drops: Iterable[Drop], *, at_right: bool
) -> tuple[dict[str, list[_End]], dict[str, list[_End]]]:
    """Return what covers each tensor of one side, and what repeats parts of it."""
    covers = by_name((drop.box, f"the drop ({drop.reason})") for drop in drops)
    copies: dict[str, list[_End]] = {}
    for pair in pairs:
        if at_right:
            box, other, copy = pair.right, pair.left.tensor, pair.left_copy
        else:
            box, other, copy = pair.left, pair.right.tensor, pair.right_copy
        if 0 not in box.size:
            side = copies if copy else covers
            if (claims := side.get(box.tensor)) is None:
                side[box.tensor] = [(box, other)]
            else:
                claims.append((box, other))
    return covers, copies


def by_name(ends: Iterable[_End]) -> dict[str, list[_End]]:
    """Group boxes that hold elements by their tensor."""
    found: dict[str, list[_End]] = {}
    for end in ends:
        if 0 not in end[0].size:
            found.setdefault(end[0].tensor, []).append(end)
    return found


def _is_run_within(box: Box, spec: Spec) -> bool:
    """Whether a box is one run of elements of its tensor."""
    return box.stride == _RUN and 0 <= box.offset <= spec.numel - box.size[0]


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
    elif not nests(sorted_axes(box)):
        yield (
            f"{side} {box.tensor}{list(spec.shape)}: the box at element {_element(box.first, spec.shape)} "
            f"of size {box.size} and stride {box.stride} overlaps itself"
        )


def _is_tiled(spec: Spec, covers: list[Where], tiled: set[tuple[object, ...]]) -> bool:
    """Whether each element of a tensor is covered once; ``tiled`` collects the forms of those that are."""
    form = (spec.shape, *covers)
    if form in tiled:
        return True
    windows = [window(Box("", *where)) for where in covers if 0 not in where[1]]
    found = tile(windows, spec.numel)
    if found.gap is not None or found.double is not None:
        return False
    if len(tiled) < _FORMS:
        tiled.add(form)
    return True


def _tiling_problems(side: str, name: str, spec: Spec, claims: list[_End]) -> Iterator[str]:
    """Yield the first element of a tensor that nothing covers, and the first covered twice."""
    found = tile([window(box) for box, _ in claims], spec.numel)
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
    xs = [window(box) for box, _ in copies]
    ys = [window(box, address=True) for box, _ in dropped]
    for i, j in overlapping(xs, ys):
        if common := meet(xs[i], ys[j]):
            at = _element(min(joint.right for joint in common), spec.shape)
            yield (
                f"{side} {name}{list(spec.shape)}: element {at} is in a copy by {copies[i][1]}, "
                f"but dropped: {dropped[j][1]}"
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
