"""Any range of any output file is what the whole file holds there, however its tensors are put together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from ckptconv.containers.stored import Extent, Stored
from ckptconv.dtypes import BY_NAME
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.events import Event, FileDone
from ckptconv.engine.fill import Filler, _all_finite, pairs_by_tensor
from ckptconv.engine.options import DIGEST_BLOCK, Options, tile_bytes
from ckptconv.engine.run import run
from ckptconv.errors import MismatchError, OutputError
from ckptconv.numbers.casts import cast
from ckptconv.places.files import SourceFiles, stamp
from ckptconv.plans.plan import Plan
from ckptconv.relations import Box, Pair, Relation, Spec
from ckptconv.writers.huggingface import layout_weights

FLOAT32, BFLOAT16 = BY_NAME["float32"], BY_NAME["bfloat16"]


def box_of(name: str, view: np.ndarray, base: np.ndarray) -> Box:
    """Return the box a numpy view covers in the array it is a view of."""
    offset = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // base.itemsize
    return Box.strided(name, offset, zip(view.shape, (s // base.itemsize for s in view.strides), strict=True))


@dataclass
class Made:
    """Left and right side of a made-up conversion, in memory."""

    left: dict[str, np.ndarray]
    right: dict[str, np.ndarray]
    pairs: list[Pair]


@st.composite
def conversions(draw: st.DrawFn) -> Made:
    """Two tensors, each cut along an axis; every piece is stored with its axes in an order of its own."""
    made = Made({}, {}, [])
    counter = 1.0
    for t in range(2):
        shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
        whole = np.zeros(shape, np.float32)
        made.right[f"right{t}"] = whole
        axis = draw(st.integers(0, len(shape) - 1))
        edges = sorted({0, shape[axis], *draw(st.lists(st.integers(0, shape[axis]), max_size=2))})
        step = draw(st.sampled_from([1, 1, 2]))
        parts = [(slice(lo, hi),) for lo, hi in pairwise(edges)] if step == 1 else [
            (slice(s, None, 2),) for s in range(min(2, shape[axis]))
        ]  # fmt: skip
        for i, (cut,) in enumerate(parts):
            target = whole[(*[slice(None)] * axis, cut)]
            order = draw(st.permutations(range(len(shape))))
            values = counter + np.arange(target.size, dtype=np.float32).reshape(target.shape)
            counter += target.size
            target[...] = values
            stored = np.ascontiguousarray(values.transpose(order))
            key = f"left{t}.{i}"
            made.left[key] = stored
            back = stored.transpose(np.argsort(order))
            made.pairs.append(Pair(box_of(key, back, stored), box_of(f"right{t}", target, whole)))
            if draw(st.booleans()):  # a copy of the piece, as another rank keeps it, in 16 bits or as it is
                copy = values.copy()
                if draw(st.booleans()):
                    copy = cast(copy.reshape(-1), FLOAT32, BFLOAT16).reshape(values.shape)
                made.left[key + ".copy"] = copy
                made.pairs.append(
                    Pair(
                        box_of(key + ".copy", copy, copy), box_of(f"right{t}", target, whole), left_copy=True
                    )
                )
    return made


@contextmanager
def planned(made: Made, dtype: str = "float32", parts: int = 2) -> Iterator[Plan]:
    """Write the left side to files, whole or in two parts where it has two elements, and plan."""
    with TemporaryDirectory() as folder:
        stored, specs, stamps = {}, {}, []
        for key, array in made.left.items():
            name = "bfloat16" if array.dtype == ml_dtypes.bfloat16 else "float32"
            flat, half = array.reshape(-1), array.size // 2 if parts == 2 else 0
            extents = []
            for at, part in ((0, flat[:half]), (half, flat[half:])):
                path = Path(folder, f"{key}.{at}")
                path.write_bytes(part.tobytes())
                stamps.append(stamp(path))
                if part.size:
                    extents.append(Extent(at, str(path), 0))
            stored[key] = Stored(BY_NAME[name], array.shape, tuple(extents))
            specs[key] = Spec(array.shape, name)
        right = {n: Spec(a.shape, dtype) for n, a in made.right.items()}
        relation = Relation(specs, right, tuple(made.pairs))
        relation.check()
        files, _ = layout_weights(
            [(n, BY_NAME[dtype], a.shape) for n, a in made.right.items()], "safetensors", 1 << 40
        )
        casts = {} if dtype == "float32" else dict.fromkeys(right, (FLOAT32, BY_NAME[dtype]))
        yield Plan(folder, "test", relation, stored, casts, files, inputs=tuple(stamps))


def expected(made: Made, dtype: str) -> bytes:
    """Return the file safetensors itself writes."""
    tensors = {n: torch.from_numpy(a.copy()).to(getattr(torch, dtype)) for n, a in made.right.items()}
    return save(tensors, metadata={"format": "pt"})


@given(
    made=conversions(),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    parts=st.sampled_from([1, 2]),
)
def test_every_range_is_that_of_the_file(made: Made, cuts: list[int], dtype: str, parts: int) -> None:
    whole = expected(made, dtype)
    edges = sorted({0, len(whole), *(c * 4 for c in cuts if c * 4 < len(whole))})
    with planned(made, dtype, parts) as plan, SourceFiles(plan.inputs) as sources:
        filler, buffers = Filler(plan, plan.files[0], sources, pairs_by_tensor(plan.relation)), Buffers()
        found = b"".join(bytes(filler.fill(lo, hi, buffers)[0]) for lo, hi in pairwise(edges))
    assert found == whole


@given(made=conversions(), data=st.data())
def test_one_wrong_element_of_a_copy_is_named(made: Made, data: st.DataObject) -> None:
    copies = [p for p in made.pairs if p.left_copy]
    if not copies:
        return
    pair = data.draw(st.sampled_from(copies))
    copy = made.left[pair.left.tensor].reshape(-1)
    at = data.draw(st.integers(0, copy.size - 1))
    copy.view(f"u{copy.itemsize}")[at] ^= 1
    values = made.right[pair.right.tensor]
    parts = data.draw(st.sampled_from([1, 2]))
    with planned(made, parts=parts) as plan, SourceFiles(plan.inputs) as sources:
        with pytest.raises(MismatchError) as caught:
            Filler(plan, plan.files[0], sources, pairs_by_tensor(plan.relation)).fill(
                0, plan.files[0].layout.size, Buffers()
            )
        where = str(caught.value.where)
    assert pair.right.tensor in caught.value.message and pair.left.tensor in caught.value.message
    place = caught.value.message.split("[", 1)[1].split("]")[0]
    index = tuple(int(i) for i in place.split(",") if i.strip())
    owner = np.zeros(copy.size, bool)
    owner[at] = True
    size, _, right = pair.aligned()
    flat = pair.right.offset + sum(
        i * s for i, s in zip(np.unravel_index(at, size or (1,)), right, strict=False)
    )
    assert int(np.ravel_multi_index(index, values.shape)) == int(flat)
    half = copy.size // 2 if parts == 2 else 0
    start = half if at >= half else 0
    assert f"{pair.left.tensor}.{start} at byte {copy.itemsize * (at - start)}" in where


@given(memory=st.integers(0, 1 << 40), workers=st.integers(0, 64))
def test_tiles_keep_to_the_memory_limit(memory: int, workers: int) -> None:
    tile = tile_bytes(Options(workers=workers, max_memory=memory))
    assert 1 << 14 <= tile <= DIGEST_BLOCK and tile & (tile - 1) == 0
    if workers and memory >= workers * 6 << 14:
        assert tile * workers * 6 <= memory


def _one(array: np.ndarray, name: str = "w") -> Made:
    return Made({"l": array}, {name: array}, [Pair(box_of("l", array, array), box_of(name, array, array))])


def test_digests_do_not_depend_on_tiles_or_workers(tmp_path: Path) -> None:
    made = _one(np.arange(3 << 20, dtype=np.float32))
    with planned(made) as plan:
        reports = [
            run(plan, tmp_path / str(i), options)
            for i, options in enumerate(
                [Options(), Options(workers=1), Options(workers=5, max_memory=1), Options(max_memory=1 << 22)]
            )
        ]
    assert len({tuple(r.files.items()) for r in reports}) == 1
    assert (tmp_path / "2" / "model.safetensors").read_bytes() == expected(made, "float32")


def test_a_resumed_run_reports_the_digests_of_a_whole_one(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.full(5000, i, np.float32) for i in range(4)}
    made = Made(
        arrays, arrays, [Pair(Box.whole(n, a.shape), Box.whole(n, a.shape)) for n, a in arrays.items()]
    )
    with planned(made) as plan:
        files, _ = layout_weights([(n, FLOAT32, a.shape) for n, a in arrays.items()], "safetensors", 20_000)
        plan = Plan(plan.source, "test", plan.relation, plan.stored, {}, files, inputs=plan.inputs)
        whole = run(plan, tmp_path / "whole", Options())

        def stop(event: Event) -> None:
            if isinstance(event, FileDone) and event.name.startswith("model-00002"):
                raise OSError(28, "No space left on device")

        with pytest.raises(OutputError):
            run(plan, tmp_path / "out", Options(workers=1), stop)
        resumed = run(plan, tmp_path / "out", Options(resume=True))
    assert resumed.files == whole.files and list(resumed.files) == list(whole.files)
    assert resumed.resumed == sum(f.layout.size for f in files[:2])


def test_no_memory_for_a_whole_tensor_is_taken(tmp_path: Path) -> None:
    import tracemalloc

    made = _one(np.arange(8 << 20, dtype=np.float32))
    del made.right["w"]
    made.right["w"] = made.left["l"]
    with planned(made, "bfloat16") as plan:
        tracemalloc.start()
        run(plan, tmp_path / "out", Options(workers=2, max_memory=4 << 20))
        peak: Any = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 6 << 20


@pytest.mark.parametrize("infinity", [0x7C00, 0x7F80])
def test_an_infinity_of_either_sign_is_seen(infinity: int) -> None:
    for value in range(1 << 16):
        bits = np.array([0x1234, value, 0x8001], np.uint16)
        assert _all_finite(bits, infinity) == (value & 0x7FFF < infinity)
    assert _all_finite(bits[:0], infinity)
