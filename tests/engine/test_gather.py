"""Any strided box of a tensor spread over files is read as numpy would index it, under any memory limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptconv.containers.stored import Extent, Stored
from ckptconv.dtypes import BY_NAME
from ckptconv.engine.gather import Shared, gather
from ckptconv.engine.rows import Rows
from ckptconv.errors import FormatError, InputChangedError
from ckptconv.places.files import SourceFiles, stamp


@contextmanager
def spread(values: np.ndarray, cuts: list[int], gaps: list[int]) -> Iterator[Stored]:
    """Store a flat array in several files, each part behind a gap of other bytes."""
    edges = [0, *cuts, values.size]
    with TemporaryDirectory() as folder:
        extents = []
        for i, (lo, hi) in enumerate(pairwise(edges)):
            path, gap = Path(folder, f"part{i}"), gaps[i % len(gaps)]
            path.write_bytes(b"\xa5" * gap + values[lo:hi].tobytes() + b"\x5a" * 9)
            extents.append(Extent(lo, str(path), gap))
        name = {2: "int16", 4: "int32", 8: "int64"}[values.itemsize]
        yield Stored(BY_NAME[name], values.shape, tuple(extents))


@st.composite
def views(draw: st.DrawFn) -> np.ndarray:
    """A view of ``arange``: sliced with steps, its axes in any order."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    item = draw(st.sampled_from([np.uint16, np.uint32, np.uint64]))
    view: Any = np.arange(int(np.prod(shape)), dtype=item).reshape(shape)
    for axis, size in enumerate(shape):
        lo = draw(st.integers(0, size - 1))
        hi = draw(st.integers(lo + 1, size))
        step = draw(st.integers(1, 3))
        view = view[(*[slice(None)] * axis, slice(lo, hi, step))]
    return view.transpose(draw(st.permutations(range(len(shape)))))


@given(
    view=views(),
    cuts=st.lists(st.integers(1, 40), max_size=4),
    gaps=st.lists(st.integers(0, 50), min_size=1, max_size=3),
    limit=st.sampled_from([1, 16, 64, 1 << 16]),
    scattered=st.booleans(),
    room=st.sampled_from([0, 64, 4096]),
)
def test_a_box_is_what_numpy_says(
    view: np.ndarray, cuts: list[int], gaps: list[int], limit: int, scattered: bool, room: int
) -> None:
    base = view
    while base.base is not None:
        base = base.base
    flat = base.reshape(-1)
    inside = sorted({c for c in cuts if c < flat.size})
    item = view.itemsize
    offset = (view.__array_interface__["data"][0] - flat.__array_interface__["data"][0]) // item
    stride = tuple(s // item for s in view.strides)
    out = np.zeros(view.shape, view.dtype)
    if scattered:
        out = np.zeros(tuple(2 * n for n in view.shape), view.dtype)[
            tuple(slice(None, None, 2) for _ in view.shape)
        ]
    with spread(flat, inside, gaps) as stored, SourceFiles([]) as files:
        rows = Rows()
        rows.serve({"t"}, room)
        shared = Shared(rows, "t", room) if room else None
        for _ in range(2):
            gather(files, stored, offset, view.shape, stride, out, limit, shared)
    assert np.array_equal(out, view)


def test_a_column_of_a_large_matrix_is_read_without_the_matrix(tmp_path: Path) -> None:
    """64 MiB on disk, 4 KiB wanted: a band of its columns is held, in half the memory there is."""
    import tracemalloc

    path = tmp_path / "matrix"
    with open(path, "wb") as file:
        file.truncate(64 << 20)
        file.seek(4 * 4096 * 7 + 4 * 5)
        file.write(b"\1\0\0\0")
    stored = Stored(BY_NAME["int32"], (4096, 4096), (Extent(0, str(path), 0),))
    out = np.zeros(1024, np.uint32)
    with SourceFiles([], 16 << 20) as files:
        tracemalloc.start()
        gather(files, stored, 5, (1024,), (4096,), out, 1 << 16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert out[7] == 1 and out.sum() == 1
    assert peak < 9 << 20


def test_spans_stay_inside_the_tensor() -> None:
    stored = Stored(BY_NAME["int16"], (10,), (Extent(0, "a", 100), Extent(4, "b", 0)))
    assert list(stored.spans(2, 7)) == [("a", 104, 4), ("b", 0, 6)]
    assert list(stored.spans(4, 4)) == []
    for lo, hi in ((-1, 3), (3, 11), (5, 4)):
        with pytest.raises(IndexError):
            list(stored.spans(lo, hi))


class TestSourceFiles:
    @pytest.mark.parametrize(("allowed", "most"), [(256, 128), (600, 200), (-1, 300)])
    def test_many_files_are_read_with_few_descriptors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, most: int
    ) -> None:
        """A third of what the system allows a process is open at a time."""
        import os

        monkeypatch.setattr("resource.getrlimit", lambda kind: (allowed, allowed))
        paths = [tmp_path / str(i) for i in range(300)]
        for i, path in enumerate(paths):
            path.write_bytes(i.to_bytes(2, "little"))
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        with SourceFiles(map(stamp, paths)) as files:
            for i, path in enumerate(paths):
                buffer = bytearray(2)
                files.read_into(str(path), 0, memoryview(buffer))
                assert int.from_bytes(buffer, "little") == i
            if before:
                assert len(os.listdir("/proc/self/fd")) - before <= most + 2
            files.check()

    def test_more_readers_than_files_kept_open(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that is being read is never closed under its reader, however many others wait."""
        from concurrent.futures import ThreadPoolExecutor

        monkeypatch.setattr("ckptconv.places.files._OPEN_FILES", (2, 2))
        paths = [tmp_path / str(i) for i in range(24)]
        for i, path in enumerate(paths):
            path.write_bytes(bytes([i]) * 5000)
        with SourceFiles([]) as files, ThreadPoolExecutor(12) as pool:

            def read(i: int) -> bool:
                buffer = bytearray(5000)
                files.read_into(str(paths[i % 24]), 0, memoryview(buffer))
                return buffer == bytes([i % 24]) * 5000

            assert all(pool.map(read, range(500)))

    def test_a_file_that_ends_early(self, tmp_path: Path) -> None:
        path = tmp_path / "short"
        path.write_bytes(b"123")
        with SourceFiles([]) as files, pytest.raises(FormatError, match="byte 3, 5 bytes early") as caught:
            files.read_into(str(path), 0, memoryview(bytearray(8)))
        assert caught.value.where == str(path) and caught.value.hint

    @pytest.mark.parametrize("change", ["longer", "gone"])
    def test_a_file_that_changed_before_it_was_opened(self, tmp_path: Path, change: str) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"123")
        with SourceFiles([stamp(path)]) as files:
            path.unlink()
            if change == "longer":
                path.write_bytes(b"1234")
            with pytest.raises(InputChangedError):
                files.read_into(str(path), 0, memoryview(bytearray(3)))
            with pytest.raises(InputChangedError):
                files.check()


def test_short_reads_share_windows_and_end_where_the_file_ends(tmp_path: Path) -> None:
    """Small parts of many files are read once for all that lies near, and never beyond the end."""
    data = bytes(range(256)) * 40
    path = tmp_path / "f"
    path.write_bytes(data)
    with SourceFiles([stamp(path)]) as files:
        for offset, count in ((0, 4), (4094, 4), (4096, 512), (10230, 10), (8191, 1), (0, 600)):
            buffer = bytearray(count)
            files.read_into(str(path), offset, memoryview(buffer))
            assert buffer == data[offset : offset + count]
        with pytest.raises(FormatError, match="1 bytes early"):
            files.read_into(str(path), 10230, memoryview(bytearray(11)))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system offers no such advice")
def test_what_follows_a_long_read_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 1 << 20
    path = tmp_path / "file"
    path.write_bytes(bytes(30 * mib))
    advised: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, at, count, advice: advised.append((at, at + count)))
    buffer = memoryview(bytearray(mib))
    with SourceFiles([stamp(path)]) as sources:
        sources.read_into(str(path), 0, buffer[:1000])
        assert advised == []
        for at in range(10):
            sources.read_into(str(path), at * mib, buffer)
        assert advised == [(a * mib, b * mib) for a, b in ((1, 17), (17, 21), (21, 25))]
        sources.read_into(str(path), 2 * mib, buffer)
        assert advised[3:] == [(3 * mib, 19 * mib)]
