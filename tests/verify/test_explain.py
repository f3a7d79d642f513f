"""Where a tensor is said to lie, its bytes lie."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ckptconv.api.explain import Match, explain
from ckptconv.containers.stored import Extent, Stored
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import UsageError
from ckptconv.relations import Box
from ckptconv.verify.explain import Explained, Part, byte_ranges, part_of
from megatron_cases import Case
from running import CASES, fails, succeeds

LLAMA = Case("llama.tar.xz", "llama/torch_tp2pp1_te_te1x")
STAGES = Case("llama.tar.xz", "llama/torch_tp1pp2_te_uneven")
QUERY = "model.layers.1.self_attn.q_proj.weight"


def explained(path: Path, name: str) -> Explained:
    found = explain(path, name)
    assert isinstance(found, Explained)
    return found


def elements(box: Box) -> np.ndarray:
    """List the flat indices of a box."""
    at = np.array([box.offset])
    for n, s in zip(box.size, box.stride, strict=True):
        at = (at[:, None] + np.arange(n) * s).ravel()
    return at


def read(part: Part, array: np.ndarray) -> np.ndarray:
    """Take the elements a part's slices name."""
    assert part.slices is not None
    count, axis, distance = part.series or (1, 0, 0)
    taken = []
    for i in range(count):
        index = [slice(a, b, s) for a, b, s in part.slices]
        if i:
            first = index[axis]
            index[axis] = slice(first.start + i * distance, first.stop + i * distance, first.step)
        taken.append(array[tuple(index)].ravel())
    return np.concatenate(taken)


@pytest.mark.parametrize("name", [QUERY, "decoder.layers.1.self_attention.linear_qkv.weight"])
def test_names_of_either_side_and_the_bytes_there(name: str) -> None:
    truth = load_file(LLAMA.hf / "model.safetensors")[QUERY].ravel()
    found = explained(LLAMA.run, name)
    assert found.names == ("Hugging Face" if name == QUERY else "megatron")
    assert [p.ranks for p in found.pieces] == [("mp_rank_00",), ("mp_rank_01",)]
    if name != QUERY:
        return
    for piece in found.pieces:
        (where,) = piece.ranges
        data = Path(where.path).read_bytes()[where.first : where.first + where.nbytes // where.runs]
        first = np.frombuffer(data, np.float32)
        assert (truth[piece.here.box.offset :][: first.size] == first).all()
    assert sum(r.nbytes for p in found.pieces for r in p.ranges) == truth.nbytes


def test_replicas_are_marked() -> None:
    found = explained(LLAMA.run, "model.norm.weight")
    assert [(p.copy, p.ranks) for p in found.pieces] == [(False, ("mp_rank_00",)), (True, ("mp_rank_01",))]
    shown = succeeds("explain", LLAMA.run, "model.norm.weight").out
    assert "1 replica" in shown and shown.index("mp_rank_00") < shown.index("replica") < shown.index(
        "mp_rank_01"
    )


def test_a_stage_is_named() -> None:
    held = {explained(STAGES.run, f"model.layers.{n}.mlp.down_proj.weight").pieces[0].ranks for n in range(4)}
    assert held == {("mp_rank_00_000",), ("mp_rank_00_001",)}


def test_partitions_of_a_flat_group_are_bytes_of_several_files() -> None:
    found = explained(CASES / "llama_tp2_z3_bf16_ws4" / "ckpt", QUERY)
    files = {r.path.rpartition("/")[2]: r for p in found.pieces for r in p.ranges}
    assert len(files) == 4 and all(r.runs == 1 and r.nbytes == r.end - r.first for r in files.values())
    assert sum(r.nbytes for r in files.values()) == prod(found.shape) * 4


def test_a_tied_head_is_the_embedding() -> None:
    run = CASES / "qwen2tied_z2_bf16_ws2" / "ckpt"
    found = explained(run, "lm_head.weight")
    assert (found.name, found.asked) == ("model.embed_tokens.weight", "lm_head.weight")
    assert "lm_head.weight shares its data" in succeeds("explain", run, "lm_head.weight").out


def test_patterns_and_typing_errors() -> None:
    found = explain(LLAMA.run, "*layers.1.*norm*")
    assert isinstance(found, tuple) and all(isinstance(m, Match) for m in found)
    assert {m.names for m in found} == {"megatron", "Hugging Face"}
    assert isinstance(explain(LLAMA.run, "*lm_head*"), Explained)
    with pytest.raises(UsageError, match="no tensor") as error:
        explain(LLAMA.run, "model.layers.1.self_attn.qproj.weight")
    assert error.value.hint is not None and QUERY in error.value.hint
    fails(2, "explain", LLAMA.run, "zzz", naming=("zzz",))


def test_json_says_all() -> None:
    said = json.loads(succeeds("explain", LLAMA.run, QUERY, "--json").out)
    assert said["shape"] == [64, 64] and said["names"] == "Hugging Face"
    first = said["pieces"][0]
    assert first["ranks"] == ["mp_rank_00"] and first["part"] == {"slice": [[0, 32, 1], [0, 64, 1]]}
    assert first["files"][0]["bytes"] == 32 * 64 * 4
    listed = json.loads(succeeds("explain", LLAMA.run, "*layers.1.*norm*", "--json").out)
    assert len(listed["matches"]) == 4


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(shapes, st.data())
def test_slices_name_the_elements_of_their_box(shape: tuple[int, ...], data: st.DataObject) -> None:
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    step = [data.draw(st.integers(1, 3)) for _ in shape]
    size = [
        data.draw(st.integers(1, (n - a - 1) // s + 1)) for n, a, s in zip(shape, start, step, strict=True)
    ]
    box = Box.of("t", shape, start=start, size=size, step=step)
    part = part_of(shape, box)
    flat = np.arange(prod(shape)).reshape(shape)
    assert part.slices is not None and part.series is None
    assert sorted(read(part, flat)) == sorted(elements(box))


def test_slices_that_begin_within_a_step() -> None:
    """Every other column from the second on is one run of a stride over all rows."""
    part = part_of((2, 1, 4), Box.of("t", (2, 1, 4), start=(0, 0, 1), size=(2, 1, 2), step=(1, 1, 2)))
    assert part.slices == ((0, 2, 1), (0, 1, 1), (1, 4, 2))


@given(st.integers(0, 30), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 12)), max_size=3), shapes)
def test_any_box_is_said_rightly(offset: int, axes: list[tuple[int, int]], shape: tuple[int, ...]) -> None:
    box = Box.strided("t", offset, axes)
    if box.last >= prod(shape) or len(set(elements(box))) < box.numel:
        return
    part = part_of(shape, box)
    if part.slices is None:
        assert str(part).startswith(f"offset {offset}")
    else:
        flat = np.arange(prod(shape)).reshape(shape)
        assert sorted(read(part, flat)) == sorted(elements(box))


@given(
    st.integers(0, 40),
    st.sampled_from([[(12, 1)], [(3, 20), (5, 1)], [(4, 10), (2, 5), (3, 1)], [(7, 3)], [(2, 40), (4, 2)]]),
    st.lists(st.integers(1, 99), max_size=4, unique=True),
)
def test_byte_ranges_hold_the_bytes_of_the_box(
    offset: int, axes: list[tuple[int, int]], cuts: list[int]
) -> None:
    box = Box.strided("t", offset, axes)
    starts = [0, *sorted(cuts)]
    if box.last >= 100:
        return
    extents = tuple(Extent(s, f"f{i % 3}", 1000 * i) for i, s in enumerate(starts))
    stored = Stored(BY_NAME["float32"], (100,), extents)
    where: dict[str, list[int]] = {}
    for at in sorted(elements(box)):
        for path, byte, _ in stored.spans(int(at), int(at) + 1):
            where.setdefault(path, []).append(byte)
    found = {r.path: r for r in byte_ranges(stored, box)}
    assert found.keys() == where.keys()
    for path, starts_at in where.items():
        assert found[path].first == min(starts_at) and found[path].end == max(starts_at) + 4
        assert found[path].nbytes == 4 * len(starts_at)
        if found[path].runs == 1:
            assert found[path].nbytes == found[path].end - found[path].first
