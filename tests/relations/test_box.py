"""A box is exactly the set of elements it says; sets of boxes are compared without visiting elements."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptconv.errors import PlanError
from ckptconv.relations.box import Box
from ckptconv.relations.meet import Axes, Window, meet, nests, overlapping
from ckptconv.relations.tiling import tile

SHAPES = [(24,), (4, 6), (6, 4), (2, 3, 4), (5, 7), (36,), (3, 4, 3), (60,), (4, 3, 5), (1,), (), (2, 1, 6)]


def elements(box: Box) -> list[int]:
    """Enumerate the flat indices of a box in its order."""
    steps = itertools.product(*(range(n) for n in box.size))
    return [box.offset + sum(i * s for i, s in zip(at, box.stride, strict=True)) for at in steps]


def window(box: Box) -> Window:
    axes = sorted(((n, s, s) for n, s in zip(box.size, box.stride, strict=True)), key=lambda a: -a[1])
    return Window(box.offset, box.offset, tuple(axes))


def walk(first: int, axes: Axes, which: int) -> list[int]:
    return elements(Box("", first, tuple(a[0] for a in axes), tuple(a[which] for a in axes)))


@st.composite
def factored(draw: st.DrawFn, numel: int) -> tuple[int, ...]:
    view: list[int] = []
    while numel > 1 and draw(st.booleans()):
        view.append(draw(st.sampled_from([k for k in range(2, numel + 1) if numel % k == 0])))
        numel //= view[-1]
    return (*view, numel)


@st.composite
def slices(draw: st.DrawFn, shape: tuple[int, ...], *, ordered: bool = False) -> dict[str, tuple[int, ...]]:
    view = draw(factored(prod(shape))) if draw(st.booleans()) else shape
    start = tuple(draw(st.integers(0, n - 1)) for n in view)
    step = tuple(draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in view)
    size = tuple(draw(st.integers(1, -((b - n) // s))) for n, b, s in zip(view, start, step, strict=True))
    order = tuple(range(len(view))) if ordered else tuple(draw(st.permutations(range(len(view)))))
    return {"view": view, "start": start, "step": step, "size": size, "order": order}


@st.composite
def boxes(draw: st.DrawFn, count: int) -> tuple[tuple[int, ...], list[Box]]:
    shape = draw(st.sampled_from(SHAPES))
    return shape, [Box.of("m", shape, **draw(slices(shape))) for _ in range(count)]


@given(st.data())
def test_a_box_is_the_numpy_slice_of_the_view(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(SHAPES))
    cut = data.draw(slices(shape))
    flat = np.arange(prod(shape)).reshape(cut["view"])
    index = tuple(
        slice(b, b + (n - 1) * s + 1, s)
        for b, n, s in zip(cut["start"], cut["size"], cut["step"], strict=True)
    )
    expected = flat[index].transpose(cut["order"]).ravel().tolist()
    box = Box.of("m", shape, **cut)
    assert elements(box) == expected
    assert (box.numel, box.first, box.last) == (len(expected), min(expected), max(expected))
    assert box.is_contiguous == (expected == list(range(expected[0], expected[0] + len(expected))))
    assert 1 not in box.size


def test_the_factories_give_one_form_for_equal_boxes() -> None:
    assert (
        Box.whole("m", (4, 6)) == Box.interval("m", 0, 24) == Box.of("m", (4, 6)) == Box("m", 0, (24,), (1,))
    )
    assert Box.of("m", (4, 6), start=(1, 0), size=(2, 6)) == Box.interval("m", 6, 18)
    assert Box.of("m", (4, 6), view=(2, 2, 2, 3)) == Box.whole("m", (24,))
    assert Box.of("m", (4, 6), order=(1, 0)) == Box("m", 0, (6, 4), (1, 6))
    assert Box.of("m", (3, 1, 5), start=(0, 0, 2), size=(3, 1, 1)) == Box("m", 2, (3,), (5,))
    assert Box.whole("m", ()) == Box("m", 0, (), ())


def test_an_empty_tensor_has_an_empty_box() -> None:
    box = Box.whole("m", (0, 7))
    assert (box.numel, box.size, box.last, box.is_contiguous) == (0, (0,), -1, True)
    assert Box.of("m", (4, 6), start=(4, 0)).numel == 0


@pytest.mark.parametrize(
    "cut",
    [
        {"view": (5, 5)},
        {"start": (0, 4), "size": (4, 3)},
        {"start": (-1, 0)},
        {"start": (5, 0)},
        {"start": (0,)},
        {"step": (1, 0)},
        {"size": (4, 2), "step": (1, 6)},
        {"order": (0, 0)},
        {"size": (4,)},
    ],
)
def test_a_slice_that_does_not_fit_is_refused_by_name(cut: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(PlanError, match="embed_weight"):
        Box.of("embed_weight", (4, 6), **cut)


@settings(max_examples=400)
@given(boxes(2))
def test_meet_is_the_intersection_of_sets(case: tuple[tuple[int, ...], list[Box]]) -> None:
    _, (a, b) = case
    joints = meet(window(a), window(b))
    assert all(walk(j.left, j.axes, 1) == walk(j.right, j.axes, 2) for j in joints)
    common = [e for j in joints for e in walk(j.left, j.axes, 1)]
    assert sorted(common) == sorted(set(elements(a)) & set(elements(b)))
    assert all(nests(tuple(sorted(j.axes, key=lambda axis: -axis[1]))) for j in joints)


def test_windows_without_a_common_grid_meet_exactly() -> None:
    a, b = Box.of("m", (72,), step=(6,)), Box.of("m", (72,), step=(4,))
    assert [walk(j.left, j.axes, 1) for j in meet(window(a), window(b))] == [[0, 12, 24, 36, 48, 60]]
    a = Box.of("m", (24,), view=(6, 4), size=(6, 3))
    b = Box.of("m", (24,), view=(4, 6), size=(4, 5))
    common = [e for j in meet(window(a), window(b)) for e in walk(j.left, j.axes, 1)]
    assert sorted(common) == sorted(set(elements(a)) & set(elements(b)))


@settings(max_examples=400)
@given(st.integers(1, 4).flatmap(boxes))
def test_tiling_finds_the_first_gap_and_the_first_double(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, parts = case
    holders = [[i for i, box in enumerate(parts) if e in elements(box)] for e in range(prod(shape))]
    found = tile([window(box) for box in parts], prod(shape))
    assert found.gap == next((e for e, held in enumerate(holders) if not held), None)
    double = next((e for e, held in enumerate(holders) if len(held) > 1), None)
    assert (found.double and found.double[0]) == double
    if found.double is not None and double is not None:
        assert set(found.double[1:]) <= set(holders[double])


@given(st.data())
def test_a_grid_of_blocks_tiles(data: st.DataObject) -> None:
    """Any way to cut rows, and then columns, covers all; without one block its first element is free."""
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    parts: list[Box] = []
    row_cuts = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    for top, bottom in itertools.pairwise(row_cuts):
        cuts = sorted({0, columns, *data.draw(st.lists(st.integers(0, columns), max_size=3))})
        for left, right in itertools.pairwise(cuts):
            size = (bottom - top, right - left)
            parts.append(Box.of("m", (rows, columns), start=(top, left), size=size))
    parts = data.draw(st.permutations(parts))
    windows = [window(box) for box in parts]
    assert tile(windows, rows * columns).gap is tile(windows, rows * columns).double is None
    lost = data.draw(st.integers(0, len(parts) - 1))
    assert tile(windows[:lost] + windows[lost + 1 :], rows * columns).gap == parts[lost].first
    twice = tile([*windows, windows[lost]], rows * columns)
    assert twice.double == (parts[lost].first, lost, len(parts))


@given(
    st.sampled_from(SHAPES).flatmap(
        lambda shape: st.tuples(*[st.lists(slices(shape), max_size=40)] * 2, st.just(shape))
    )
)
@settings(max_examples=60)
def test_no_overlap_is_missed(case: tuple[list[dict], list[dict], tuple[int, ...]]) -> None:  # type: ignore[type-arg]
    xs = [Box.of("m", case[2], **cut) for cut in case[0]]
    ys = [Box.of("m", case[2], **cut) for cut in case[1]]
    found = list(overlapping([window(x) for x in xs], [window(y) for y in ys]))
    assert len(found) == len(set(found))
    y_sets = [set(elements(y)) for y in ys]
    assert {(i, j) for i, x in enumerate(xs) for j, y in enumerate(y_sets) if y & set(elements(x))} <= set(
        found
    )
