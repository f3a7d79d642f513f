"""Of parts of a relation that are alike one is kept, and what is wrong anywhere stays in what is kept."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ckptconv.relations import Box, Drop, Pair, Relation, Spec, representatives
from ckptconv.verify.proof import prove


def layers(count: int) -> Relation:
    """Each of some layers: rows of two ranks joined, and a copy of its norm on each."""
    left, right, pairs = {}, {}, []
    for i in range(count):
        right |= {f"{i}.w": Spec((6, 4), "float32"), f"{i}.norm": Spec((4,), "float32")}
        for rank in range(2):
            left |= {f"{i}.w.{rank}": Spec((3, 4), "float32"), f"{i}.norm.{rank}": Spec((4,), "float32")}
            w, norm = f"{i}.w.{rank}", f"{i}.norm.{rank}"
            pairs.append(Pair(Box.whole(w, (3, 4)), Box.interval(f"{i}.w", 12 * rank, 12 * rank + 12)))
            copy = Box.whole(f"{i}.norm", (4,))
            pairs.append(Pair(Box.whole(norm, (4,)), copy, left_copy=rank > 0))
    return Relation(left, right, tuple(pairs))


def test_one_layer_stands_for_all() -> None:
    kept = representatives(layers(50))
    assert sorted(kept.right) == ["0.norm", "0.w"] and len(kept.pairs) == 4
    kept.check()
    proof, wrong = prove([layers(50)], {}, {})
    assert proof.pairs == 200 and proof.complete and proof.invertible and not wrong


def test_tensors_that_nothing_joins_stay_if_they_differ() -> None:
    one = layers(2)
    more = replace(one, left={**one.left, "alone": Spec((3,), "float32"), "empty": Spec((0,), "float32")})
    assert {"alone", "empty"} <= representatives(more).left.keys()
    dropped = replace(more, left_only=(Drop(Box.whole("alone", (3,)), "unused"),))
    assert prove([dropped], {}, {})[1] == []
    assert "alone" in prove([more], {}, {})[1][0].text


def replicas(count: int) -> Relation:
    """A tensor on many ranks, the halves of each in one piece of the whole, read and written."""
    pairs = []
    for rank in range(count):
        for lo in (0, 3):
            here, there = Box.interval(f"w.{rank}", lo, lo + 3), Box.interval("w", 3 - lo, 6 - lo)
            pairs.append(Pair(here, there, left_copy=rank > 0))
    left = {f"w.{rank}": Spec((6,), "float32") for rank in range(count)}
    return Relation(left, {"w": Spec((6,), "float32")}, tuple(pairs))


def test_one_replica_stands_for_all() -> None:
    for relation in (replicas(50), replicas(50).invert()):
        kept = representatives(relation)
        assert (len(kept.left), len(kept.right), len(kept.pairs)) in ((2, 1, 4), (1, 2, 4))
        proof, wrong = prove([relation], {}, {})
        assert proof.pairs == 100 and proof.invertible and not wrong


@given(st.integers(2, 19), st.sampled_from(["missing", "twice", "moved", "dropped"]), st.booleans())
def test_what_is_wrong_with_one_replica_is_found(number: int, how: str, written: bool) -> None:
    sound = replicas(10)
    pairs = list(sound.pairs)
    pair = pairs[number]
    drops: tuple[Drop, ...] = ()
    if how == "missing":
        del pairs[number]
    elif how == "twice":
        pairs.append(pair)
    elif how == "moved":
        pairs[number] = pair._replace(left=pair.left._replace(offset=pair.left.offset + 1))
    else:
        drops = (Drop(pair.left, "unused"),)
    broken = replace(sound, pairs=tuple(pairs), left_only=drops)
    _, wrong = prove([broken.invert() if written else broken], {}, {})
    assert len(wrong) == 1 and pair.left.tensor in wrong[0].text


@given(st.integers(0, 39), st.sampled_from(["missing", "twice", "moved", "unknown"]))
def test_what_is_wrong_in_one_layer_is_found(number: int, how: str) -> None:
    sound = layers(10)
    pairs = list(sound.pairs)
    pair = pairs[number]
    if how == "missing" and not pair.left_copy:
        del pairs[number]
    elif how == "twice":
        pairs.append(pair)
    elif how == "unknown":
        pairs[number] = pair._replace(left=pair.left._replace(tensor="nowhere"))
    else:
        pairs[number] = pair._replace(right=pair.right._replace(offset=pair.right.offset + 1))
    _, wrong = prove([replace(sound, pairs=tuple(pairs))], {}, {})
    assert len(wrong) == 1
    layer = pair.right.tensor.partition(".")[0]
    assert f"{layer}." in wrong[0].text or "nowhere" in wrong[0].text
