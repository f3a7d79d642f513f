"""Files that hold columns or copies of the same tensors are made abreast, and these tensors are read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptconv.containers.stored import Extent, Stored
from ckptconv.dtypes import BY_NAME, DType
from ckptconv.engine.abreast import HELD, abreast, grouped, tile_abreast
from ckptconv.engine.fill import pairs_by_tensor
from ckptconv.engine.options import Options
from ckptconv.engine.rows import Rows
from ckptconv.engine.run import run
from ckptconv.places.files import SourceFiles, stamp
from ckptconv.plans.plan import Plan
from ckptconv.relations import Box, Pair, Relation, Spec
from ckptconv.verify.compare import Comparer
from ckptconv.writers.huggingface import layout_weights

FLOAT32, BFLOAT16 = BY_NAME["float32"], BY_NAME["bfloat16"]
RANKS, ROWS, COLUMNS = 4, 1500, 4096


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    sizes = {"down": (ROWS, COLUMNS), "norm": (70_000,), "up": (RANKS * 400, 1000)}
    return {n: random.standard_normal(s, np.float32) for n, s in sizes.items()}


@pytest.fixture
def plan(values: dict[str, np.ndarray], tmp_path: Path, request: pytest.FixtureRequest) -> Plan:
    """Four ranks: of the first tensor each has columns, of the second a copy, of the third rows."""
    dtype: DType = request.param
    stored, specs, files, pairs = {}, {}, [], []
    for name, array in values.items():
        path = tmp_path / name
        path.write_bytes(array.tobytes())
        stored[name] = Stored(FLOAT32, array.shape, (Extent(0, str(path), 0),))
        specs[name] = Spec(array.shape, "float32")
    right: dict[str, Spec] = {}
    for rank in range(RANKS):
        width, length = COLUMNS // RANKS, 70_000
        own = {"down": (ROWS, width), "norm": (length,), "up": (400, 1000)}
        made, _ = layout_weights([(f"{n}.{rank}", dtype, s) for n, s in own.items()], "safetensors", 1 << 40)
        files += [replace(file, name=f"rank{rank}") for file in made]
        right |= {f"{n}.{rank}": Spec(s, dtype.name) for n, s in own.items()}
        columns = Box.strided("down", rank * width, [(ROWS, COLUMNS), (width, 1)])
        pairs += [
            Pair(columns, Box.whole(f"down.{rank}", own["down"])),
            Pair(Box.whole("norm", (length,)), Box.whole(f"norm.{rank}", (length,)), right_copy=rank > 0),
            Pair(
                Box.interval("up", rank * 400_000, (rank + 1) * 400_000),
                Box.interval(f"up.{rank}", 0, 400_000),
            ),
        ]
    relation = Relation(specs, right, tuple(pairs))
    relation.check()
    inputs = tuple(stamp(tmp_path / name) for name in values)
    casts = {} if dtype is FLOAT32 else dict.fromkeys(right, (FLOAT32, dtype))
    return Plan(str(tmp_path), "test", relation, stored, casts, tuple(files), inputs=inputs)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes read of each source file."""
    found: Counter[str] = Counter()
    inner = SourceFiles._read

    def _read(self: SourceFiles, path: str, offset: int, buffer: memoryview) -> int:
        found[Path(path).name] += len(buffer)
        return inner(self, path, offset, buffer)

    monkeypatch.setattr(SourceFiles, "_read", _read)
    return found


@pytest.mark.parametrize("plan", [FLOAT32, BFLOAT16], indirect=True, ids=str)
@pytest.mark.parametrize("workers", [1, 3])
def test_what_ranks_share_is_read_once(
    plan: Plan, values: dict[str, np.ndarray], read: Counter[str], workers: int, tmp_path: Path
) -> None:
    (group,) = grouped(plan, range(RANKS), pairs_by_tensor(plan.relation))
    assert group.files == [0, 1, 2, 3] and group.shared == {"down", "norm"}
    together = run(plan, tmp_path / "together", Options(workers=workers))
    assert all(read[n] <= 1.02 * a.nbytes for n, a in values.items()), read
    alone: dict[str, str] = {}
    for rank in range(RANKS):
        one = run(
            replace(plan, files=plan.files[rank : rank + 1]), tmp_path / "alone", Options(overwrite=True)
        )
        alone |= one.files
    assert together.files == alone
    assert read["down"] > 3 * values["down"].nbytes


@pytest.mark.parametrize("plan", [FLOAT32, BFLOAT16], indirect=True, ids=str)
def test_what_ranks_share_is_read_once_to_compare_them(
    plan: Plan, values: dict[str, np.ndarray], read: Counter[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(plan, out, Options())
    read.clear()
    made = replace(plan, files=tuple(replace(f, name=str(out / f.name)) for f in plan.files))
    with SourceFiles(plan.inputs) as sources, SourceFiles([stamp(f.name) for f in made.files]) as there:
        assert Comparer(made, sources, there, Options(workers=2), lambda event: None).run() == []
    assert all(0 < read[n] <= 1.02 * a.nbytes for n, a in values.items()), read


@pytest.mark.parametrize("plan", [BFLOAT16], indirect=True, ids=str)
def test_little_memory_costs_reads_alone(plan: Plan, tmp_path: Path) -> None:
    whole = run(plan, tmp_path / "whole", Options())
    assert run(plan, tmp_path / "little", Options(max_memory=1 << 18)).files == whole.files


@pytest.mark.parametrize("plan", [FLOAT32], indirect=True, ids=str)
def test_flat_tensors_of_many_files_are_shared_by_nobody(plan: Plan) -> None:
    down = plan.stored["down"]
    (extent,) = down.extents
    halves = (extent, extent._replace(start=down.numel // 2, offset=down.nbytes // 2))
    plan = replace(plan, stored={**plan.stored, "down": replace(down, extents=halves)})
    (group,) = grouped(plan, range(RANKS), pairs_by_tensor(plan.relation))
    assert group.shared == {"norm"}


def test_no_more_than_eight_files_are_open_at_once() -> None:
    names = [f"w{i}" for i in range(20)]
    files, _ = layout_weights([(n, FLOAT32, (4,)) for n in names], "safetensors", 16)
    whole = Box.whole("w", (4,))
    pairs = tuple(Pair(whole, Box.whole(n, (4,)), right_copy=n != "w0") for n in names)
    relation = Relation({"w": Spec((4,), "float32")}, {n: Spec((4,), "float32") for n in names}, pairs)
    stored = {"w": Stored(FLOAT32, (4,), (Extent(0, "w", 0),))}
    plan = Plan("", "test", relation, stored, {}, files)
    groups = grouped(plan, range(20), pairs_by_tensor(relation))
    assert [len(g.files) for g in groups] == [8, 8, 4]
    assert sorted(n for g in groups for n in g.files) == list(range(20))


def test_sequences_of_any_length_take_turns() -> None:
    def upto(n: int) -> Iterator[int]:
        return iter(range(n))

    assert list(abreast([upto(1), upto(0), upto(3)])) == [[0, 0], [1], [2]]


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("count", range(1, 9))
def test_what_all_read_fits_into_what_is_held(count: int, casts: bool) -> None:
    tile = tile_abreast(1 << 22, count, casts=casts)
    assert count * tile * (1 + casts) <= HELD << 22 and (1 << 22) % tile == 0
    assert tile_abreast(1 << 14, count, casts=casts) == 1 << 14


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=60), st.integers(41, 300))
def test_what_is_held_is_what_was_read(asked: list[tuple[int, int]], room: int) -> None:
    rows, reads = Rows(), Counter[tuple[int, int]]()
    rows.serve({"t"}, room)
    assert rows.room_for("t") == room and rows.room_for("other") == 0

    for lo, n in asked:
        wanted = (np.arange(n) * 7 + lo) % 256

        def read(out: np.ndarray, key: tuple[int, int] = (lo, n), wanted: np.ndarray = wanted) -> None:
            reads[key] += 1
            out[...] = wanted

        assert rows.get("t", lo, lo + n, n, read).tolist() == wanted.tolist()
    if len(set(asked)) == 1:
        assert sum(reads.values()) == 1


def test_what_could_not_be_read_is_not_held() -> None:
    rows = Rows()
    rows.serve({"t"}, 100)

    def fails(out: np.ndarray) -> None:
        raise OSError("no disk")

    rows.get("t", 0, 60, 60, lambda out: out.fill(1))
    with pytest.raises(OSError, match="no disk"):
        rows.get("t", 0, 50, 50, fails)
    assert rows.get("t", 0, 50, 50, lambda out: out.fill(2)).tolist() == [2] * 50
    assert rows.get("t", 0, 60, 60, lambda out: out.fill(3)).tolist() == [3] * 60
