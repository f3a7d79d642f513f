"""A relation accounts for every element of both sides, or says which it does not."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from math import prod

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ckptconv.errors import PlanError
from ckptconv.relations.box import Box
from ckptconv.relations.packing import in_turns, padded, permuted, replicated, split, tiled
from ckptconv.relations.pair import Drop, Pair, Spec, join, restrict
from ckptconv.relations.relation import Relation

Address = tuple[str, int]


def elements(box: Box) -> list[Address]:
    steps = itertools.product(*(range(n) for n in box.size))
    return [
        (box.tensor, box.offset + sum(i * s for i, s in zip(at, box.stride, strict=True))) for at in steps
    ]


def links(pair: Pair) -> list[tuple[Address, Address, bool, bool]]:
    """Enumerate what a pair joins, element by element, with its flags."""
    left, right = elements(pair.left), elements(pair.right)
    return [(a, b, pair.left_copy, pair.right_copy) for a, b in zip(left, right, strict=True)]


def all_links(relation: Relation) -> list[tuple[Address, Address, bool, bool]]:
    return sorted(link for pair in relation.pairs for link in links(pair))


def dropped(drops: tuple[Drop, ...]) -> list[tuple[Address, str]]:
    return sorted((at, drop.reason) for drop in drops for at in elements(drop.box))


def spec(*shape: int) -> Spec:
    return Spec(shape, "float32")


@st.composite
def relations(draw: st.DrawFn, shape: tuple[int, ...], name: str, *, side: str = "s") -> Relation:
    """Relate shards, with replicas and padding, to a tensor cut and transposed at random."""
    axis = draw(st.integers(0, len(shape) - 1))
    steps: list[Relation] = []
    whole = spec(*shape)
    if draw(st.booleans()):
        rows = shape[axis] + draw(st.integers(0, 3))
        steps.append(padded(f"{side}.pad", name, whole, rows=rows, axis=axis))
        name, whole = f"{side}.pad", steps[-1].left[f"{side}.pad"]
    if draw(st.booleans()):
        order = draw(st.permutations(range(len(shape))))
        steps.append(permuted(f"{side}.turned", name, whole, order=order))
        name, whole = f"{side}.turned", steps[-1].left[f"{side}.turned"]
    ranks = draw(st.integers(1, 3))
    axis = draw(st.integers(0, len(shape) - 1))
    cuts = sorted(draw(st.lists(st.integers(0, whole.shape[axis]), min_size=ranks - 1, max_size=ranks - 1)))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, whole.shape[axis]])]
    names = [f"{side}{r}" for r in range(ranks)]
    steps.append(split(names, name, whole, axis=axis, sizes=sizes))
    copies = draw(st.integers(1, 2))
    shards = steps[-1].left
    steps.append(
        Relation.union(replicated([f"{n}.copy{c}" for c in range(copies)], n, shards[n]) for n in names)
    )
    result = steps[-1]
    for step in reversed(steps[:-1]):
        result = result.compose(step)
    return result


SHAPES = st.sampled_from([(6,), (4, 6), (3, 4), (2, 3, 4), (5, 3)])
SIDES = SHAPES.flatmap(lambda shape: st.tuples(relations(shape, "w"), relations(shape, "w", side="t")))
SOUND = SHAPES.flatmap(lambda shape: relations(shape, "w"))


@given(SOUND)
def test_inverting_twice_is_the_relation(relation: Relation) -> None:
    assert relation.invert().invert() == relation
    relation.check()
    relation.invert().check()
    flipped = sorted((b, a, d, c) for a, b, c, d in all_links(relation))
    assert all_links(relation.invert()) == flipped


@given(SOUND)
def test_a_round_trip_is_the_identity(relation: Relation) -> None:
    merged = relation.invert().compose(relation)
    assert merged.is_identity()
    assert relation.compose(relation.invert()).is_identity()
    if not any(pair.is_copy for pair in relation.pairs):
        assert sorted(a for a, *_ in all_links(merged)) == [
            ("w", i) for i in range(relation.right["w"].numel)
        ]


@settings(max_examples=150)
@given(SIDES)
def test_composing_joins_element_by_element(sides: tuple[Relation, Relation]) -> None:
    first, second = sides[0], sides[1].invert()
    whole = first.compose(second)
    by_middle: dict[Address, list[tuple[Address, bool, bool]]] = {}
    for b, c, x, y in all_links(second):
        by_middle.setdefault(b, []).append((c, x, y))
    wanted = sorted(
        (a, c, x or z, y or w) for a, b, x, y in all_links(first) for c, z, w in by_middle.get(b, [])
    )
    assert all_links(whole) == wanted
    whole.check()
    assert dropped(whole.left_only) == dropped(first.left_only)
    assert dropped(whole.right_only) == dropped(second.right_only)
    assert whole.compose(whole.invert()).is_identity()


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3))
def test_drops_in_the_middle_go_through(more: int, less: int, ranks: int) -> None:
    """Rows that only the middle has: with no source they stay without one, unused ones stay unused."""
    true = 6
    rows = (true + more) * ranks
    source = padded("m", "a", spec(true, 2), rows=rows, reason="new rows").invert()
    target = split([f"b{r}" for r in range(ranks)], "m", spec(rows, 2), axis=0).invert()
    out = source.compose(target)
    out.check()
    assert sum(drop.box.numel for drop in out.right_only) == (rows - true) * 2
    assert {drop.reason for drop in out.right_only} <= {"new rows"}
    back = target.invert().compose(padded("m", "c", spec(max(true - less, 1), 2), rows=rows))
    back.check()
    assert {drop.box.tensor for drop in back.left_only} <= {f"b{r}" for r in range(ranks)}
    assert sum(drop.box.numel for drop in back.left_only) == (rows - max(true - less, 1)) * 2


def test_copies_compose() -> None:
    a = replicated(["a0", "a1"], "m", spec(3))
    b = replicated(["b0", "b1"], "m", spec(3)).invert()
    flags = {(p.left.tensor, p.right.tensor): (p.left_copy, p.right_copy) for p in a.compose(b).pairs}
    assert flags == {
        ("a0", "b0"): (False, False),
        ("a1", "b0"): (True, False),
        ("a0", "b1"): (False, True),
        ("a1", "b1"): (True, True),
    }
    a.compose(b).check()


def test_a_replica_of_dropped_elements_is_dropped_with_them() -> None:
    replicas = replicated(["r0", "r1"], "m", spec(8))
    out = replicas.compose(padded("m", "w", spec(5), rows=8))
    out.check()
    assert dropped(out.left_only) == [((f"r{r}", i), "vocabulary padding") for r in (0, 1) for i in (5, 6, 7)]


@pytest.mark.parametrize("count", [3, 700])
def test_the_parts_of_a_stack_meet_others_that_begin_elsewhere(count: int) -> None:
    whole = Spec((count * 6,), "float32")
    sixes = tiled({f"a{i}": ((6 * i,), (6,)) for i in range(count)}, "whole", whole)
    begin = [0, *range(4, count * 6, 5)]
    ends = [*begin[1:], count * 6]
    others = {f"b{i}": ((lo,), (hi - lo,)) for i, (lo, hi) in enumerate(zip(begin, ends, strict=True))}
    fives = tiled(others, "whole", whole)
    both = sixes.compose(fives.invert())
    both.check()
    from_left = {b: a for a, b, *_ in all_links(sixes)}
    from_right = {b: a for a, b, *_ in all_links(fives)}
    assert {a: b for a, b, *_ in all_links(both)} == {from_left[n]: from_right[n] for n in from_left}


def test_what_is_said_twice_of_a_tensor_is_still_said_twice_of_what_it_becomes() -> None:
    spec = Spec((4,), "float32")
    pair = Pair(Box.whole("a", (4,)), Box.whole("b", (4,)))
    twice = Relation({"a": spec}, {"b": spec}, (pair, pair))
    onward = Relation({"b": spec}, {"c": spec}, (Pair(Box.whole("b", (4,)), Box.whole("c", (4,))),))
    with pytest.raises(PlanError, match="covered twice"):
        twice.compose(onward).check()


def test_relations_that_speak_of_other_tensors_do_not_compose() -> None:
    a = Relation.union([replicated(["a"], "m", spec(4)), replicated(["b"], "n", spec(4))])
    with pytest.raises(PlanError, match="n: only the first relation has it"):
        a.compose(replicated(["c"], "m", spec(4)).invert())
    with pytest.raises(PlanError, match="n: only the second relation has it"):
        replicated(["c"], "m", spec(4)).compose(a.invert())
    with pytest.raises(PlanError, match=r"m: float32\[4\] in the first relation, float32\[5\] in the second"):
        replicated(["c"], "m", spec(4)).compose(replicated(["c"], "m", spec(5)).invert())
    with pytest.raises(PlanError, match=r"m: float32.* in the first relation, bfloat16"):
        replicated(["c"], "m", spec(4)).compose(replicated(["c"], "m", Spec((4,), "bfloat16")).invert())
    with pytest.raises(PlanError, match=r"m is float32\[4\] and float32\[5\]"):
        Relation.union([replicated(["a"], "m", spec(4)), replicated(["b"], "m", spec(5))])


# What goes wrong with a relation that was sound.


@given(SOUND, st.data())
def test_a_lost_pair_is_refused_by_name(relation: Relation, data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from([pair for pair in relation.pairs if pair.left.numel]))
    pairs = tuple(pair for pair in relation.pairs if pair is not lost)
    name, at = lost.left.tensor, min(elements(lost.left))[1]
    with pytest.raises(PlanError) as error:
        replace(relation, pairs=pairs).check()
    assert f"left {name}{list(relation.left[name].shape)}: element " in str(error.value)
    assert "covered by no pair" in str(error.value)
    assert str(position(at, relation.left[name].shape)) in str(error.value)
    assert not replace(relation, pairs=pairs).is_identity()


@given(SOUND, st.data())
def test_a_doubled_pair_is_refused_by_name(relation: Relation, data: st.DataObject) -> None:
    double = data.draw(st.sampled_from([pair for pair in relation.pairs if pair.left.numel]))
    with pytest.raises(PlanError, match="covered twice") as error:
        replace(relation, pairs=(*relation.pairs, double)).check()
    name, at = double.left.tensor, min(elements(double.left))[1]
    assert f"left {name}{list(relation.left[name].shape)}" in str(error.value)
    assert str(position(at, relation.left[name].shape)) in str(error.value)


@given(SOUND, st.data(), st.integers(-30, 30).filter(bool))
def test_a_shifted_pair_is_refused_by_name(relation: Relation, data: st.DataObject, shift: int) -> None:
    index = data.draw(st.integers(0, len(relation.pairs) - 1))
    pair = relation.pairs[index]
    assume(pair.left.numel)
    moved = pair._replace(left=pair.left._replace(offset=pair.left.offset + shift))
    pairs = (*relation.pairs[:index], moved, *relation.pairs[index + 1 :])
    with pytest.raises(PlanError, match=pair.left.tensor):
        replace(relation, pairs=pairs).check()


@given(SOUND, st.booleans())
def test_an_unclaimed_tensor_is_refused_by_name(relation: Relation, left: bool) -> None:
    more = {"lost": spec(2, 2)}
    broken = replace(relation, left={**relation.left, **more}) if left else replace(
        relation, right={**relation.right, **more}
    )  # fmt: skip
    side = "left" if left else "right"
    with pytest.raises(PlanError, match=rf"{side} lost\[2, 2\]: element \(0, 0\) is covered by no pair"):
        broken.check()


def position(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(index // prod(shape[axis + 1 :]) % n for axis, n in enumerate(shape))


def broken(*pairs: Pair, **more: tuple[Drop, ...]) -> Relation:
    return Relation({"a": spec(2, 3)}, {"b": spec(2, 3)}, pairs, **more)


WHOLE = Pair(Box.whole("a", (2, 3)), Box.whole("b", (2, 3)))
HEAD = Pair(Box.interval("a", 0, 4), Box.interval("b", 0, 4))


@pytest.mark.parametrize(
    ("relation", "message"),
    [
        (broken(), r"left a\[2, 3\]: element \(0, 0\) is covered by no pair"),
        (broken(Pair(Box.whole("x", (2, 3)), WHOLE.right)), "left x: a box of 6 elements, but no such"),
        (broken(Pair(Box.interval("a", 0, 7), Box.interval("b", 0, 7))), "flat elements 0 to 6 leaves"),
        (broken(Pair(Box.interval("a", -1, 5), WHOLE.right)), "flat elements -1 to 4 leaves"),
        (broken(Pair(Box.interval("a", 0, 5), WHOLE.right)), "a at flat element 0 has 5 elements, .* has 6"),
        (broken(Pair(Box("a", 0, (2, 3), (1, 1)), WHOLE.right)), r"left a.* stride \(1, 1\) overlaps itself"),
        (broken(Pair(Box("a", 0, (2, 3), (3, 0)), WHOLE.right)), r"left a.* stride \(3, 0\) overlaps itself"),
        (broken(Pair(Box("a", 0, (2, 3), (3, 1)), Box("b", 0, (3, 2), (2, 1)))), "have no common axes"),
        (
            broken(WHOLE, left_only=(Drop(Box.interval("a", 4, 6), "tail"),)),
            r"left a\[2, 3\]: element \(1, 1\) is covered twice, by the drop \(tail\) and b",
        ),
        (
            broken(HEAD, left_only=(Drop(Box.interval("a", 4, 5), "tail"),)),
            r"left a.*: element \(1, 2\) is covered by no pair or drop \(others .* the drop \(tail\)\)",
        ),
        (broken(WHOLE._replace(left_copy=True)), r"right b\[2, 3\]: element \(0, 0\) is covered by no pair"),
        (
            broken(
                WHOLE._replace(left_copy=True),
                right_only=(Drop(WHOLE.right, "new"),),
            ),
            r"right b\[2, 3\]: element \(0, 0\) is in a copy by a, but dropped: new",
        ),
        (broken(WHOLE, left_only=(Drop(Box.whole("y", (2,)), "tail"),)), "left y: a box of 2 elements"),
    ],
)  # fmt: skip
def test_each_fault_says_what_and_where(relation: Relation, message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        relation.check()
    assert error.value.hint
    assert not relation.is_identity()


def test_many_faults_are_one_error() -> None:
    relation = Relation({f"t{i}": spec(2) for i in range(50)}, {}, ())
    with pytest.raises(PlanError) as error:
        relation.check()
    assert len(error.value.message.splitlines()) == 21
    assert error.value.message.endswith("... and 30 more")


@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 2), (1,), (1, 1)])
def test_scalars_and_empty_tensors_are_whole(shape: tuple[int, ...]) -> None:
    relation = replicated(["a"], "b", spec(*shape))
    relation.check()
    assert relation.compose(relation.invert()).is_identity()
    Relation({"a": spec(0)}, {"b": spec(0)}, ()).check()


def test_a_wrong_round_trip_is_not_the_identity() -> None:
    turned = permuted("a", "b", spec(3, 3))
    assert not Relation(turned.right, turned.right, tuple(
        pair._replace(left=pair.left._replace(tensor="b")) for pair in turned.pairs
    )).is_identity()  # fmt: skip
    assert not turned.is_identity()
    copies_only = WHOLE._replace(right=Box.whole("a", (2, 3)), left_copy=True, right_copy=True)
    assert not Relation({"a": spec(2, 3)}, {"a": spec(2, 3)}, (copies_only,)).is_identity()


# Digests, JSON, parts.


@given(SOUND)
def test_the_digest_ignores_order_alone(relation: Relation) -> None:
    digest = relation.digest()
    turned = replace(
        relation,
        pairs=relation.pairs[::-1],
        left=dict(reversed(relation.left.items())),
        left_only=relation.left_only[::-1],
    )
    assert turned.digest() == digest
    assert Relation.from_dict(json.loads(json.dumps(relation.to_dict()))).digest() == digest
    pair = relation.pairs[0]
    left = pair.left
    changes = [
        pair._replace(left=left._replace(offset=left.offset + 1)),
        pair._replace(left=left._replace(tensor="other")),
        pair._replace(right=pair.right._replace(size=(*pair.right.size, 1), stride=(*pair.right.stride, 1))),
        pair._replace(left_copy=not pair.left_copy),
        pair._replace(right_copy=not pair.right_copy),
    ]
    others = [replace(relation, pairs=(change, *relation.pairs[1:])).digest() for change in changes]
    others.append(replace(relation, pairs=relation.pairs[1:]).digest())
    others.append(replace(relation, left={**relation.left, "more": spec(1)}).digest())
    others.append(replace(relation, right={"w": Spec(relation.right["w"].shape, "float16")}).digest())
    others.append(replace(relation, left_only=(*relation.left_only, Drop(left, "why"))).digest())
    others.append(replace(relation, right_only=(*relation.right_only, Drop(left, "why"))).digest())
    assert len({digest, *others}) == len(others) + 1


@given(SOUND)
def test_json_keeps_the_relation(relation: Relation) -> None:
    assert Relation.from_dict(json.loads(json.dumps(relation.to_dict()))) == relation


@pytest.mark.parametrize("data", [{}, {"left": 1}, {"left": {}, "right": {}, "pairs": [1]}, []])
def test_other_json_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="not a serialised relation"):
        Relation.from_dict(data)


def test_select_keeps_what_concerns_some_tensors() -> None:
    parts = {"q": spec(4, 3), "k": spec(2, 3), "v": spec(2, 3)}
    fused = in_turns("qkv", parts, groups=2)
    shards = split(["r0", "r1"], "qkv", fused.left["qkv"], axis=0)
    whole = Relation.union([shards.compose(fused), replicated(["n0", "n1"], "norm", spec(3))])
    part = whole.select(["k", "norm"])
    assert set(part.right) == {"k", "norm"}
    assert set(part.left) == {"r0", "r1", "n0", "n1"}
    assert all_links(part) == [link for link in all_links(whole) if link[1][0] in ("k", "norm")]
    only_k = fused.select(["k"])
    assert all_links(shards.select(only_k.left).compose(only_k)) == all_links(whole.select(["k"]))


# Parts of pairs.


@settings(max_examples=200)
@given(SIDES, st.data())
def test_restrict_is_the_part_in_an_interval(sides: tuple[Relation, Relation], data: st.DataObject) -> None:
    relation = sides[0].compose(sides[1].invert())
    pair = data.draw(st.sampled_from([pair for pair in relation.pairs if pair.right.numel]))
    numel = relation.right[pair.right.tensor].numel
    lo = data.draw(st.integers(0, numel))
    hi = data.draw(st.integers(lo, numel))
    parts = restrict(pair, lo, hi)
    assert sorted(link for part in parts for link in links(part)) == sorted(
        link for link in links(pair) if lo <= link[1][1] < hi
    )
    assert len(parts) <= max(2 * len(pair.aligned()[0]) - 1, 1)
    assert [part.right.offset for part in parts] == sorted(part.right.offset for part in parts)
    cut = [*restrict(pair, 0, lo), *parts, *restrict(pair, hi, numel)]
    assert sorted(link for part in cut for link in links(part)) == sorted(links(pair))


@given(st.data())
def test_join_pairs_any_two_boxes(data: st.DataObject) -> None:
    """Boxes whose sizes have no common factor chain are cut until they have."""
    a, b = data.draw(
        st.sampled_from([((6, 4), (4, 6)), ((2, 3), (3, 2)), ((4,), (2, 2)), ((2, 9), (6, 3)), ((), ())])
    )
    left = Box.of("a", tuple(n + 1 for n in a), size=a)
    right = Box.of("b", tuple(n + 2 for n in b), size=b, order=data.draw(st.permutations(range(len(b)))))
    pairs = join(left, right, left_copy=True)
    joined = sorted(link for pair in pairs for link in links(pair))
    assert joined == sorted((x, y, True, False) for x, y in zip(elements(left), elements(right), strict=True))
    for pair in pairs:
        size, left_stride, right_stride = pair.aligned()
        assert elements(Box("a", pair.left.offset, size, left_stride)) == elements(pair.left)
        assert elements(Box("b", pair.right.offset, size, right_stride)) == elements(pair.right)


def test_axes_of_size_one_do_not_matter() -> None:
    assert Pair(Box("a", 3, (1,), (7,)), Box("b", 4, (), ())).aligned() == ((), (), ())
    assert Pair(Box("a", 0, (1, 4, 1), (9, 2, 9)), Box("b", 0, (2, 2), (8, 1))).aligned() == (
        (2, 2),
        (4, 2),
        (8, 1),
    )


def test_join_wants_as_many_elements() -> None:
    with pytest.raises(PlanError, match=r"has 4 elements, .* has 5"):
        join(Box.whole("a", (4,)), Box.whole("b", (5,)))


def test_chunks_that_overlap_or_leave_a_hole_are_refused() -> None:
    sound = {"a": ((0, 0), (4, 3)), "b": ((0, 3), (4, 3))}
    tiled(sound, "w", spec(4, 6)).check()
    with pytest.raises(PlanError, match=r"right w\[4, 6\]: element \(0, 2\) is covered twice, by a and b"):
        tiled({**sound, "b": ((0, 2), (4, 4))}, "w", spec(4, 6)).check()
    with pytest.raises(PlanError, match=r"right w\[4, 6\]: element \(0, 3\) is covered by no pair"):
        tiled({**sound, "b": ((1, 3), (3, 3))}, "w", spec(4, 6)).check()
