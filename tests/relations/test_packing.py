"""Packings, chained with tensor parallel cuts, move arrays as an independent numpy reference does."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptconv.errors import PlanError
from ckptconv.relations import packing
from ckptconv.relations.box import Box
from ckptconv.relations.pair import Pair, Spec
from ckptconv.relations.relation import Relation

Array = npt.NDArray[np.int64]
NONE = -1


def indices(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    at = np.full(size, offset, np.int64)
    for axis, (n, s) in enumerate(zip(size, stride, strict=True)):
        at += (np.arange(n) * s).reshape([-1 if a == axis else 1 for a in range(len(size))])
    return at.ravel()


def move(relation: Relation, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Carry arrays from the left of a relation to its right; what has no source is `NONE`."""
    relation.check()
    out = {name: np.full(spec.shape, NONE, np.int64) for name, spec in relation.right.items()}
    for name, spec in relation.left.items():
        assert arrays[name].shape == spec.shape
    for pair in relation.pairs:
        size, left, right = pair.aligned()
        values = arrays[pair.left.tensor].ravel()[indices(pair.left.offset, size, left)]
        target = out[pair.right.tensor].reshape(-1)
        at = indices(pair.right.offset, size, right)
        assert pair.left_copy or (target[at] == NONE).all()
        target[at] = values
    return out


def fresh(specs: Mapping[str, Spec]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    done = 0
    for name, spec in specs.items():
        arrays[name] = np.arange(done, done + spec.numel).reshape(spec.shape)
        done += spec.numel
    return arrays


def assert_equal(got: Mapping[str, Array], want: Mapping[str, Array]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert np.array_equal(got[name], want[name]), name


def assert_moves(relation: Relation, packed: Mapping[str, Array], whole: Mapping[str, Array]) -> None:
    """Both directions, and their round trips, are what the reference says."""
    assert_equal(move(relation, packed), whole)
    assert_equal(move(relation.invert(), whole), packed)
    assert relation.compose(relation.invert()).is_identity()
    assert relation.invert().compose(relation).is_identity()


def spec(*shape: int) -> Spec:
    return Spec(shape, "bfloat16")


SMALL = st.integers(1, 4)


@given(st.lists(SMALL, max_size=3), st.data())
def test_one_renames_and_reshapes(shape: list[int], data: st.DataObject) -> None:
    other = data.draw(st.sampled_from([tuple(shape), (prod(shape),), (*shape, 1)]))
    relation = packing.renamed("a", "b", spec(*shape), shape=other)
    whole = fresh({"b": spec(*shape)})
    assert_moves(relation, {"a": whole["b"].reshape(other)}, whole)


@given(
    groups=SMALL,
    runs=st.lists(SMALL, min_size=1, max_size=3),
    outer=SMALL,
    inner=SMALL,
    axis=st.sampled_from([1, -2]),
)
def test_parts_take_turns_by_group(groups: int, runs: list[int], outer: int, inner: int, axis: int) -> None:
    parts = {f"p{i}": spec(outer, groups * run, inner) for i, run in enumerate(runs)}
    whole = fresh(parts)
    turns = [np.split(whole[name], groups, axis=1) for name in parts]
    packed = np.concatenate([turn[g] for g in range(groups) for turn in turns], axis=1)
    assert_moves(packing.in_turns("x", parts, groups=groups, axis=axis), {"x": packed}, whole)


def test_the_named_groupings() -> None:
    parts = {"gate": spec(4, 3), "up": spec(4, 3)}
    whole = fresh(parts)
    gate, up = whole["gate"], whole["up"]
    assert_moves(packing.in_a_row("x", parts), {"x": np.concatenate([gate, up])}, whole)
    assert_moves(packing.in_a_row("x", parts, axis=-1), {"x": np.concatenate([gate, up], 1)}, whole)
    ranks = np.concatenate([gate[:2], up[:2], gate[2:], up[2:]])
    assert_moves(packing.in_turns("x", parts, groups=2), {"x": ranks}, whole)
    assert_moves(packing.row_by_row("x", parts), {"x": np.stack([gate, up], 1).reshape(8, 3)}, whole)
    assert_moves(packing.row_by_row("x", parts, axis=1), {"x": np.stack([gate, up], 2).reshape(4, 6)}, whole)
    assert_moves(packing.piled("x", parts), {"x": np.stack([gate, up])}, whole)
    vectors = {"q": spec(4), "k": spec(2), "v": spec(2)}
    bias = fresh(vectors)
    q, k, v = bias.values()
    fused = np.concatenate([q[:2], k[:1], v[:1], q[2:], k[1:], v[1:]])
    assert_moves(packing.in_turns("x", vectors, groups=2), {"x": fused}, bias)


@given(
    st.lists(SMALL, min_size=2, max_size=4).flatmap(
        lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))
    )
)
def test_permuted_reorders_axes(case: tuple[list[int], list[int]]) -> None:
    shape, order = case
    whole = fresh({"b": spec(*shape)})
    assert_moves(
        packing.permuted("a", "b", spec(*shape), order=order), {"a": whole["b"].transpose(order)}, whole
    )
    assert_moves(packing.permuted("a", "b", spec(*shape)), {"a": whole["b"].T}, whole)


@given(heads=SMALL, half=SMALL, before=st.integers(0, 2), after=st.integers(0, 2), inner=SMALL)
def test_rotary_turns_pairs_into_halves(heads: int, half: int, before: int, after: int, inner: int) -> None:
    dim = before + 2 * half + after
    packed = fresh({"a": spec(heads * dim, inner)})
    view = packed["a"].reshape(heads, dim, inner)
    turned = view[:, before : before + 2 * half]
    want = np.concatenate(
        [view[:, :before], turned[:, 0::2], turned[:, 1::2], view[:, before + 2 * half :]], axis=1
    )
    relation = packing.halved("a", "b", spec(heads * dim, inner), heads=heads, start=before, size=2 * half)
    assert_moves(relation, packed, {"b": want.reshape(heads * dim, inner)})
    bias = packing.halved("a", "b", spec(heads * 2 * half), heads=heads)
    vector = np.arange(heads * 2 * half)
    assert_moves(bias, {"a": vector}, {"b": vector.reshape(heads, half, 2).transpose(0, 2, 1).ravel()})


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4), axis=st.integers(-3, 2), other=SMALL)
def test_split_cuts_evenly_or_not(sizes: list[int], axis: int, other: int) -> None:
    shape = [other, other, other]
    shape[axis] = sum(sizes)
    names = [f"rank{r}" for r in range(len(sizes))]
    whole = fresh({"w": spec(*shape)})
    shards = dict(zip(names, np.split(whole["w"], np.cumsum(sizes)[:-1], axis=axis), strict=True))
    assert_moves(packing.split(names, "w", spec(*shape), axis=axis, sizes=sizes), shards, whole)
    if len(set(sizes)) == 1:
        assert_moves(packing.split(names, "w", spec(*shape), axis=axis), shards, whole)


@given(st.integers(0, 40), st.integers(1, 12))
def test_chunk_sizes_are_those_of_torch(total: int, ranks: int) -> None:
    torch = pytest.importorskip("torch")
    sizes = [len(c) for c in torch.chunk(torch.empty(total), ranks)]
    assert packing.chunk_sizes(total, ranks) == sizes + [0] * (ranks - len(sizes))


def test_tiled_takes_any_rectangles() -> None:
    whole = fresh({"w": spec(5, 6)})
    w = whole["w"]
    chunks = {"a": ((0, 0), (2, 6)), "b": ((2, 0), (3, 4)), "c": ((2, 4), (3, 2))}
    assert_moves(packing.tiled(chunks, "w", spec(5, 6)), {"a": w[:2], "b": w[2:, :4], "c": w[2:, 4:]}, whole)


def test_replicas_are_declared() -> None:
    relation = packing.replicated(["r0", "r1", "r2"], "w", spec(3))
    value = np.arange(3)
    assert_equal(move(relation, {"r0": value, "r1": value, "r2": value}), {"w": value})
    back = move(relation.invert(), {"w": value})
    assert_equal(back, {"r0": value, "r1": value, "r2": value})
    assert [pair.left_copy for pair in relation.pairs] == [False, True, True]
    assert relation.compose(relation.invert()).is_identity()
    assert relation.invert().compose(relation).is_identity()


@given(true=SMALL, more=st.integers(0, 4), axis=st.integers(0, 1))
def test_padding_is_dropped_on_a_merge_and_has_no_source_on_a_split(true: int, more: int, axis: int) -> None:
    shape = (true, 3) if axis == 0 else (3, true)
    relation = packing.padded("p", "w", spec(*shape), rows=true + more, axis=axis)
    packed = fresh(relation.left)
    kept = packed["p"][:true] if axis == 0 else packed["p"][:, :true]
    assert_equal(move(relation, packed), {"w": kept})
    back = move(relation.invert(), {"w": kept})["p"]
    assert np.array_equal(back, np.where(np.isin(packed["p"], kept), packed["p"], NONE))
    assert [drop.reason for drop in relation.left_only] == ["vocabulary padding"] * (more > 0)
    assert relation.compose(relation.invert()).is_identity()
    assert relation.invert().compose(relation).is_identity()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 8))
def test_a_virtual_tensor_holds_what_zero_scatters(numels: list[int], ranks: int) -> None:
    """Each parameter is padded to a multiple of the ranks, and every rank's buffer holds its part of each."""
    parts = [-(-n // ranks) for n in numels]
    row, pairs, drops = sum(parts), list[Pair](), []
    column = 0
    for i, (numel, part) in enumerate(zip(numels, parts, strict=True)):
        more, padding = packing.partitioned(f"p{i}", numel, ranks, "zero", row, column)
        assert len(more) <= 2 and len(padding) <= 2
        pairs += more
        drops += padding
        column += part
    right = {f"p{i}": spec(n) for i, n in enumerate(numels)}
    relation = Relation({"zero": spec(ranks, row)}, right, tuple(pairs), tuple(drops))
    whole = fresh(right)
    padded = [np.pad(whole[f"p{i}"], (0, ranks * part - n), constant_values=NONE).reshape(ranks, part)
              for i, (n, part) in enumerate(zip(numels, parts, strict=True))]  # fmt: skip
    zero = np.concatenate(padded, axis=1)
    assert_equal(move(relation, {"zero": zero}), whole)
    assert_equal(move(relation.invert(), whole), {"zero": zero})
    names = [f"rank{r}" for r in range(ranks)]
    files = packing.split(names, "zero", spec(ranks, row), axis=0)
    shards = {name: zero[r : r + 1] for r, name in enumerate(names)}
    assert_equal(move(files.compose(relation), shards), whole)
    assert_equal(move(files.compose(relation).invert(), whole), shards)
    for name in right:
        part_only = relation.select([name])
        assert_equal(_fill(files.select(part_only.left).compose(part_only), shards), {name: whole[name]})


def _fill(relation: Relation, shards: Mapping[str, Array]) -> dict[str, Array]:
    out = {name: np.full(spec.shape, NONE, np.int64) for name, spec in relation.right.items()}
    for pair in relation.pairs:
        size, left, right = pair.aligned()
        values = shards[pair.left.tensor].ravel()[indices(pair.left.offset, size, left)]
        out[pair.right.tensor].reshape(-1)[indices(pair.right.offset, size, right)] = values
    return out


@settings(max_examples=150)
@given(st.data())
def test_a_packing_under_uneven_tensor_parallel_cuts(data: st.DataObject) -> None:
    """Fused query groups in transposed experts, reordered, stacked, cut anywhere: one relation."""
    groups, heads, dim, hidden = (data.draw(st.integers(1, 3)) for _ in range(4))
    dim *= 2
    experts = data.draw(st.integers(1, 3))
    right: dict[str, Spec] = {}
    stages: list[list[Relation]] = [[], [], []]
    for e in range(experts):
        parts = {f"{e}.q": spec(groups * heads * dim, hidden), f"{e}.k": spec(groups * dim, hidden)}
        right |= parts
        turned = {f"{name}.pairs": part for name, part in parts.items()}
        for name, part in parts.items():
            count = groups * heads if name.endswith("q") else groups
            stages[2].append(packing.halved(f"{name}.pairs", name, part, heads=count))
        stages[1].append(packing.in_turns(f"{e}.qk", turned, groups=groups))
        stages[0].append(packing.permuted(f"{e}.t", f"{e}.qk", stages[1][-1].left[f"{e}.qk"]))
    layers = [Relation.union(stage) for stage in stages]
    stack = packing.piled("all", {f"{e}.t": layers[0].left[f"{e}.t"] for e in range(experts)})
    axis = data.draw(st.integers(0, 2))
    length = stack.left["all"].shape[axis]
    ranks = data.draw(st.integers(1, 4))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), min_size=ranks - 1, max_size=ranks - 1)))
    sizes = np.diff([0, *cuts, length]).tolist()
    names = [f"rank{r}" for r in range(ranks)]
    relation = packing.split(names, "all", stack.left["all"], axis=axis, sizes=sizes).compose(stack)
    for layer in layers:
        relation = relation.compose(layer)

    whole = fresh(right)
    fused = []
    for e in range(experts):
        q = whole[f"{e}.q"].reshape(groups, heads, 2, dim // 2, hidden).swapaxes(2, 3)
        k = whole[f"{e}.k"].reshape(groups, 1, 2, dim // 2, hidden).swapaxes(2, 3)
        fused.append(np.concatenate([q, k], 1).reshape(-1, hidden).T)
    shards = dict(zip(names, np.split(np.stack(fused), cuts, axis=axis), strict=True))
    assert_moves(relation, shards, whole)


@given(vocab=st.integers(1, 20), ranks=SMALL, multiple=SMALL, hidden=SMALL, replicas=st.integers(1, 3))
def test_a_padded_vocabulary_split_over_ranks_with_replicas(
    vocab: int, ranks: int, multiple: int, hidden: int, replicas: int
) -> None:
    rows = -(-vocab // (multiple * ranks)) * multiple * ranks
    pad = packing.padded("padded", "embed", spec(vocab, hidden), rows=rows)
    shards = [f"tp{r}" for r in range(ranks)]
    cut = packing.split(shards, "padded", pad.left["padded"], axis=0)
    copies = Relation.union(
        packing.replicated([f"dp{d}/{name}" for d in range(replicas)], name, cut.left[name])
        for name in shards
    )
    relation = copies.compose(cut).compose(pad)
    whole = np.arange(vocab * hidden).reshape(vocab, hidden)
    stored = np.full((rows, hidden), NONE, np.int64)
    stored[:vocab] = whole
    tp = np.split(stored, ranks)
    files = {f"dp{d}/tp{r}": tp[r] for d in range(replicas) for r in range(ranks)}
    assert_equal(move(relation, files), {"embed": whole})
    assert_equal(move(relation.invert(), {"embed": whole}), files)
    assert relation.compose(relation.invert()).is_identity()
    assert relation.invert().compose(relation).is_identity()
    dropped = sum(drop.box.numel for drop in relation.left_only)
    assert dropped == replicas * (rows - vocab) * hidden


@given(data=st.data())
def test_tensor_parallel_is_cut_anew_through_the_whole(data: st.DataObject) -> None:
    """Megatron TP 3 to Megatron TP 2: the shards of one relate to the shards of the other."""
    rows, columns = data.draw(st.integers(1, 4)) * 6, data.draw(st.integers(1, 4)) * 6
    old, new = data.draw(st.sampled_from([1, 2, 3, 6])), data.draw(st.sampled_from([1, 2, 3, 6]))
    axes = data.draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
    left = packing.split([f"old{r}" for r in range(old)], "w", spec(rows, columns), axis=axes[0])
    right = packing.split([f"new{r}" for r in range(new)], "w", spec(rows, columns), axis=axes[1])
    relation = left.compose(right.invert())
    whole = np.arange(rows * columns).reshape(rows, columns)
    shards = {f"old{r}": part for r, part in enumerate(np.split(whole, old, axes[0]))}
    wanted = {f"new{r}": part for r, part in enumerate(np.split(whole, new, axes[1]))}
    assert_moves(relation, shards, wanted)
    assert len(relation.pairs) <= old * new


def test_layouts_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"^up .*axis 0 cannot be cut into 4"):
        packing.in_turns("fc1", {"gate": spec(8, 2), "up": spec(6, 2)}, groups=4)
    with pytest.raises(PlanError, match=r"fc1 cannot hold both gate .* and up"):
        packing.in_a_row("fc1", {"gate": spec(8, 2), "up": spec(8, 3)})
    with pytest.raises(PlanError, match="experts cannot stack b"):
        packing.piled("experts", {"a": spec(2), "b": spec(3)})
    with pytest.raises(PlanError, match=r"embed .*axis 0 is not cut by"):
        packing.split(["a", "b"], "embed", spec(8), axis=0, sizes=[4, 3])
    with pytest.raises(PlanError, match=r"embed .*has no axis 1"):
        packing.split(["a", "b"], "embed", spec(8), axis=1)
    with pytest.raises(PlanError, match="7 rows cannot hold the 8 of embed"):
        packing.padded("padded", "embed", spec(8, 2), rows=7)
    with pytest.raises(PlanError, match="q: no 3 rotary dimensions"):
        packing.halved("pairs", "q", spec(6, 2), heads=2)
    with pytest.raises(PlanError, match=r"a \[3\] cannot be b \[4\]"):
        packing.renamed("a", "b", spec(4), shape=(3,))


def test_regular_packings_stay_few() -> None:
    """A fused tensor over 8 ranks is one pair a part and rank, however many heads it has."""
    parts = {"q": spec(64 * 128, 1024), "k": spec(8 * 128, 1024), "v": spec(8 * 128, 1024)}
    fused = packing.in_turns("qkv", parts, groups=8)
    assert len(fused.pairs) == 3
    cut = packing.split([f"tp{r}" for r in range(4)], "qkv", fused.left["qkv"], axis=0)
    assert len(cut.compose(fused).pairs) == 12
    assert Box.whole("q", (64 * 128, 1024)) in [pair.right for pair in fused.pairs]
