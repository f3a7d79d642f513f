"""Shards become whole tensors: against numpy's concatenation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ckptconv.errors import PlanError
from ckptconv.parallel import Cut, Shard, merge_shards
from ckptconv.relations import Box, Relation, Spec

Array = npt.NDArray[np.int64]


def whole_of(relation: Relation, shards: dict[str, Array]) -> Array:
    """Fill the whole tensor, copies left out."""
    ((name, spec),) = relation.right.items()
    out = np.full(spec.numel, -1)
    for pair in relation.pairs:
        if not pair.left_copy:
            assert (out[_indices(pair.right)] == -1).all()
            out[_indices(pair.right)] = shards[pair.left.tensor].reshape(-1)[_indices(pair.left)]
    assert (out >= 0).all(), name
    return out.reshape(spec.shape)


def _indices(box: Box) -> Array:
    at = np.array([box.offset])
    for n, step in zip(box.size, box.stride, strict=True):
        at = (at[:, None] + np.arange(n) * step).reshape(-1)
    return at


def made(cut: Cut, *shapes: tuple[int, ...]) -> tuple[Relation, list[Array]]:
    arrays, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(np.arange(start, start + size).reshape(shape))
        start += size
    shards = [Shard(f"s{i}", Spec(a.shape, "float32"), i) for i, a in enumerate(arrays)]
    relation = merge_shards("w", shards, cut, len(arrays))
    relation.check()
    return relation, arrays


def check(cut: Cut, expected: Array, relation: Relation, arrays: list[Array]) -> None:
    found = whole_of(relation, {f"s{i}": a for i, a in enumerate(arrays)})
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shards_are_joined_along_their_axis(axis: int) -> None:
    relation, arrays = made(Cut(axis), (2, 3, 4), (2, 3, 4), (2, 3, 4))
    check(Cut(axis), np.concatenate(arrays, axis=axis), relation, arrays)


def test_uneven_and_empty_slices() -> None:
    relation, arrays = made(Cut(0), (3, 2), (2, 2), (0, 2))
    assert relation.right["w"].shape == (5, 2)
    check(Cut(0), np.concatenate(arrays), relation, arrays)


def test_parts_are_cut_each_by_itself() -> None:
    relation, arrays = made(Cut(0, 2), (4, 3), (4, 3))
    gate_up = [np.split(a, 2) for a in arrays]
    check(Cut(0, 2), np.concatenate([g for g, _ in gate_up] + [u for _, u in gate_up]), relation, arrays)
    relation, arrays = made(Cut(1, 3), (2, 6), (2, 6))
    parts = [np.split(a, 3, axis=1) for a in arrays]
    expected = np.concatenate([p[i] for i in range(3) for p in parts], axis=1)
    check(Cut(1, 3), expected, relation, arrays)


def test_replicas_are_copies_of_the_first() -> None:
    spec = Spec((4,), "bfloat16")
    relation = merge_shards("norm", [Shard(f"s{i}", spec) for i in range(3)], Cut(), 2)
    assert [p.left_copy for p in relation.pairs] == [False, True, True]
    relation.check()
    both = [Shard("a0", spec, 0), Shard("b0", spec, 0), Shard("a1", spec, 1), Shard("b1", spec, 1)]
    relation = merge_shards("w", both, Cut(0), 2)
    assert {p.left.tensor for p in relation.pairs if p.left_copy} == {"b0", "b1"}
    assert relation.right["w"] == Spec((8,), "bfloat16")
    relation.check()


def test_a_split_is_the_merge_from_the_other_end() -> None:
    relation, _ = made(Cut(1, 2), (3, 4), (3, 4))
    assert relation.compose(relation.invert()).is_identity()
    assert relation.invert().compose(relation).is_identity()


@pytest.mark.parametrize(
    ("shards", "cut", "count", "what"),
    [
        ([Shard("a", Spec((2, 2), "float32"), 1)], Cut(0), 2, "no rank holds slice 0 of 2"),
        (
            [Shard("a", Spec((2, 2), "float32")), Shard("b", Spec((2, 3), "float32"))],
            Cut(), 1, r"float32\[2, 2\] in a and float32\[2, 3\] in b",
        ),
        (
            [Shard("a", Spec((2,), "float32")), Shard("b", Spec((2,), "bfloat16"))],
            Cut(), 1, "float32.* in a and bfloat16.* in b",
        ),
        (
            [Shard("a", Spec((2, 2), "float32"), 0), Shard("b", Spec((2, 3), "float32"), 1)],
            Cut(0), 2, "cannot be joined along axis 0",
        ),
        (
            [Shard("a", Spec((3, 2), "float32"), 0), Shard("b", Spec((3, 2), "float32"), 1)],
            Cut(0, 2), 2, "cannot be joined",
        ),
        (
            [Shard("a", Spec((2,), "float32"), 0), Shard("b", Spec((2,), "bfloat16"), 1)],
            Cut(0), 2, "cannot be joined",
        ),
        (
            [Shard("a", Spec((2,), "float32"), 0), Shard("b", Spec((2,), "float32"), 1)],
            Cut(1), 2, "cannot be joined along axis 1",
        ),
    ],
)  # fmt: skip
def test_slices_that_do_not_fit_are_refused(shards: list[Shard], cut: Cut, count: int, what: str) -> None:
    with pytest.raises(PlanError, match=what):
        merge_shards("w", shards, cut, count)
