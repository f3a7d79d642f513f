"""What is added to a tensor does not depend on tiles or threads, and is rounded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptconv.containers.stored import Extent, Stored
from ckptconv.dtypes import BY_NAME, DType, numpy_dtype
from ckptconv.engine import terms as engine_terms
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.engine.options import Options
from ckptconv.engine.run import run
from ckptconv.engine.terms import blocks
from ckptconv.errors import MismatchError
from ckptconv.places.files import SourceFiles, stamp
from ckptconv.plans.plan import Plan
from ckptconv.relations import Box, Constant, LowRank, Pair, Relation, Scaled, Spec, Term
from ckptconv.relations.terms import operands
from ckptconv.writers.huggingface import layout_weights

NAMES = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16",
         np.dtype(ml_dtypes.bfloat16): "bfloat16", np.dtype(np.float64): "float64"}  # fmt: skip


@contextmanager
def planned(
    tensors: Mapping[str, np.ndarray],
    terms: Mapping[str, Sequence[Term]],
    dtype: str = "float32",
    copies: Mapping[str, np.ndarray] | None = None,
    via: str | None = None,
) -> Iterator[Plan]:
    """Store tensors, and copies of some, and plan to write all but the operands."""
    added = {n: tuple(t) for n, t in terms.items()}
    parts = operands(added)
    with TemporaryDirectory() as folder:
        stored, left, right, pairs, stamps = {}, {}, {}, [], []
        both = [(n, n, a) for n, a in tensors.items()] + [(n, n + "~", a) for n, a in (copies or {}).items()]
        for name, key, array in both:
            path = Path(folder, key)
            path.write_bytes(array.tobytes())
            stamps.append(stamp(path))
            kind = NAMES[array.dtype]
            stored[key] = Stored(BY_NAME[kind], array.shape, (Extent(0, str(path), 0),))
            left[key] = Spec(array.shape, kind)
            if key == name:
                right[name] = Spec(array.shape, kind if name in parts else dtype)
            whole = Box.whole(name, array.shape)
            pairs.append(Pair(Box.whole(key, array.shape), whole, left_copy=key != name))
        relation = Relation(left, right, tuple(pairs))
        relation.check()
        written = [n for n in tensors if n not in parts]
        files, _ = layout_weights(
            [(n, BY_NAME[dtype], tensors[n].shape) for n in written], "safetensors", 1 << 40
        )
        casts = {}
        for name in written:
            chain: list[DType] = []
            for step in (NAMES[tensors[name].dtype], via, dtype):
                if step is not None and (not chain or chain[-1].name != step):
                    chain.append(BY_NAME[step])
            if len(chain) > 1:
                casts[name] = tuple(chain)
        yield Plan(folder, "test", relation, stored, casts, files, inputs=tuple(stamps), terms=added)


def filled(plan: Plan, cuts: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Return the tensors of the plan's file, made in ranges between ``cuts`` of its bytes."""
    file = plan.files[0]
    edges = sorted({0, file.layout.size, *(c for c in cuts if c < file.layout.size)})
    with SourceFiles(plan.inputs) as sources:
        filler, buffers = Filler(plan, file, sources, pairs_by_tensor(plan.relation)), Buffers()
        data = b"".join(bytes(filler.fill(lo, hi, buffers)[0]) for lo, hi in pairwise(edges))
    return {
        t.name: np.frombuffer(data[t.offset : t.offset + t.nbytes], numpy_dtype(t.dtype)).reshape(t.shape)
        for t in file.layout.tensors
    }


def random(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def in_order(w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """Sum over the rank in order, in float32."""
    total = np.zeros((b.shape[0], a.shape[1]), np.float32)
    for k in range(a.shape[0]):
        total += np.outer(b[:, k].astype(np.float32), a[k].astype(np.float32))
    return w.astype(np.float32) + total * np.float32(scale)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    rank=st.integers(1, 4),
    transposed=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    cuts=st.lists(st.integers(0, 600).map(lambda n: 4 * n), max_size=6),
    block=st.sampled_from([1, 3, 8, 1 << 15]),
)
def test_a_product_is_the_same_however_it_is_cut(
    rows: int, columns: int, rank: int, transposed: bool, dtype: str, cuts: list[int], block: int
) -> None:
    w = random(rows, columns)
    into, out = (rows, columns) if transposed else (columns, rows)
    a, b = random(rank, into, seed=1), random(out, rank, seed=2, dtype=np.float16)
    tensors = {"w": w, "other": random(5, seed=3), "a": a, "b": b}
    delta = in_order(np.zeros((out, into)), a, b, 0.75)
    whole = w + (delta.T if transposed else delta)
    terms = {"w": [LowRank("a", "b", 0.75, transposed)]}
    with planned(tensors, terms, dtype) as plan, patch.object(engine_terms, "_BLOCK", block):
        found = filled(plan, cuts)
    expected = torch.from_numpy(np.ascontiguousarray(whole)).to(getattr(torch, dtype))
    got = torch.from_numpy(np.ascontiguousarray(found["w"].astype(np.float32)))
    assert torch.equal(got, expected.float())
    plain = torch.from_numpy(tensors["other"]).to(getattr(torch, dtype)).float()
    assert torch.equal(torch.from_numpy(found["other"].astype(np.float32)), plain)


@given(
    rows=st.integers(1, 7), columns=st.integers(1, 7), lo=st.integers(0, 48), size=st.integers(0, 49),
    block=st.integers(1, 12),
)  # fmt: skip
def test_blocks_tile_a_range(rows: int, columns: int, lo: int, size: int, block: int) -> None:
    hi = min(lo + size, rows * columns)
    with patch.object(engine_terms, "_BLOCK", block):
        made = list(blocks(lo, hi, columns))
    flat = [
        i * columns + j for row, end, left, right in made for i in range(row, end) for j in range(left, right)
    ]
    assert flat == list(range(lo, hi))
    assert all((end - row) * (right - left) <= block for row, end, left, right in made)


def test_bytes_do_not_depend_on_tiles_or_workers(tmp_path: Path) -> None:
    """Large enough for many tiles; the file's bytes are those of a plain sum over the rank."""
    w, a, b = random(1100, 700), random(17, 700, seed=1), random(1100, 17, seed=2)
    with planned({"w": w, "a": a, "b": b}, {"w": [LowRank("a", "b", 1.3)]}, "bfloat16") as plan:
        hows = [Options(), Options(workers=1, max_memory=1), Options(workers=5, max_memory=1 << 20)]
        reports = [run(plan, tmp_path / str(i), how) for i, how in enumerate(hows)]
        data = (tmp_path / "1" / "model.safetensors").read_bytes()
    assert len({tuple(r.files.items()) for r in reports}) == 1
    expected = torch.from_numpy(in_order(w, a, b, 1.3)).bfloat16()
    assert data[-w.size * 2 :] == expected.view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_sum_is_rounded_once(stored: type) -> None:
    """1 + 2^-8 + 2^-8 is a bfloat16; each half, added and rounded for itself, would be lost."""
    w = np.ones(4, stored)
    with planned({"w": w}, {"w": [Constant(2.0**-8), Constant(2.0**-8)]}, "bfloat16") as plan:
        found = filled(plan)["w"].astype(np.float32)
    assert found.tolist() == [1 + 2.0**-7] * 4


def test_zero_centred_norms_get_their_one() -> None:
    w = random(1000, dtype=ml_dtypes.bfloat16)
    with planned({"norm": w}, {"norm": [Constant(1.0)]}, "bfloat16") as plan:
        found = filled(plan, [12, 34, 1002])["norm"]
    expected = (torch.from_numpy(w.astype(np.float32)) + 1).bfloat16().float()
    assert np.array_equal(found.astype(np.float32), expected.numpy())


def test_the_rounding_on_the_way_is_kept() -> None:
    """Masters that the model ran with in bfloat16: rounded first, then summed up, then rounded."""
    w = random(50)
    with planned({"w": w}, {"w": [Constant(1.0)]}, "float32", via="bfloat16") as plan:
        found = filled(plan)["w"]
    expected = torch.from_numpy(w).bfloat16().float() + 1
    assert np.array_equal(found, expected.numpy())
    assert not np.array_equal(found, w + 1)


def test_several_terms_and_shared_operands() -> None:
    q, k, bias = random(4, 6), random(2, 6, seed=1), random(4, seed=2)
    a, b1, b2, more = random(3, 6, seed=3), random(4, 3, seed=4), random(2, 3, seed=5), random(4, seed=6)
    tensors = {"q": q, "k": k, "bias": bias, "a": a, "b1": b1, "b2": b2, "more": more}
    terms: dict[str, list[Term]] = {
        "q": [LowRank("a", "b1", 2.0)], "k": [LowRank("a", "b2", 2.0), Constant(0.5)],
        "bias": [Scaled("more", 2.0)],
    }  # fmt: skip
    with planned(tensors, terms) as plan:
        found = filled(plan)
    assert set(found) == {"q", "k", "bias"}
    assert np.array_equal(found["q"], in_order(q, a, b1, 2.0))
    assert np.array_equal(found["bias"], bias + more * np.float32(2))
    zero = np.zeros_like(k)
    assert np.array_equal(found["k"], k + (in_order(zero, a, b2, 2.0) + np.float32(0.5)))


@pytest.mark.parametrize("name", ["w", "a", "b"])
@pytest.mark.parametrize("damaged", [False, True])
def test_copies_are_compared_before_anything_is_added(name: str, damaged: bool) -> None:
    tensors = {"w": random(5, 7), "a": random(2, 7, seed=1), "b": random(5, 2, seed=2)}
    copy = tensors[name].copy()
    if damaged:
        copy[-1, -1] += 1
    with planned(tensors, {"w": [LowRank("a", "b", 2.0)]}, copies={name: copy}) as plan:
        if not damaged:
            assert np.array_equal(filled(plan)["w"], in_order(tensors["w"], tensors["a"], tensors["b"], 2.0))
            return
        with pytest.raises(MismatchError) as caught:
            filled(plan)
    assert caught.value.message.startswith(f"{name}[{copy.shape[0] - 1}, {copy.shape[1] - 1}]")


def test_overflow_in_float16_is_counted(tmp_path: Path) -> None:
    w = np.array([65000, 1, np.inf, -65000], np.float32)
    with planned({"w": w}, {"w": [Constant(1000.0)]}, "float16") as plan:
        assert run(plan, tmp_path / "out", Options()).overflows == 1


def test_few_operands_are_kept() -> None:
    """More factors than may be kept, used in turn: the values stay right, and memory bounded."""
    tensors = {"w0": random(3, 8), "w1": random(3, 8, seed=1)}
    for i in range(2):
        tensors |= {f"a{i}": random(2, 8, seed=2 + i), f"b{i}": random(3, 2, seed=4 + i)}
    terms = {f"w{i}": [LowRank(f"a{i}", f"b{i}", 1.0)] for i in range(2)}
    with planned(tensors, terms) as plan, patch.object(engine_terms, "_KEPT", 1):
        with SourceFiles(plan.inputs) as sources:
            filler = Filler(plan, plan.files[0], sources, pairs_by_tensor(plan.relation))
            filler.fill(0, plan.files[0].layout.size, Buffers())
            assert len(filler._adder._kept) == 1
        found = filled(plan)
    for i in range(2):
        expected = in_order(tensors[f"w{i}"], tensors[f"a{i}"], tensors[f"b{i}"], 1.0)
        assert np.array_equal(found[f"w{i}"], expected)
