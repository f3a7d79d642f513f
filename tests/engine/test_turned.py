"""A turned matrix arrives whole, whatever its size and the memory there is, and is read once, by bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckptconv.containers.stored import Extent, Stored
from ckptconv.dtypes import BY_NAME
from ckptconv.engine.gather import gather
from ckptconv.engine.turned import copy_box
from ckptconv.places.files import SourceFiles, stamp

KINDS = {"float8_e4m3fn": np.uint8, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}


def _numbers(kind: type, *shape: int) -> np.ndarray:
    high = np.iinfo(kind).max
    return np.random.default_rng(0).integers(0, high, shape, dtype=kind)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 64), (257, 300), (1023, 513), (512, 1030)])
def test_a_matrix_is_turned(kind: type, shape: tuple[int, int]) -> None:
    values, out = _numbers(kind, *shape), np.zeros(shape[::-1], kind)
    copy_box(values.T, out)
    assert np.array_equal(out, values.T)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 2, 1), (2, 0, 1)])
def test_boxes_of_more_axes_are_turned(order: tuple[int, ...]) -> None:
    values = _numbers(np.uint16, 5, 70, 90)
    out = np.zeros(tuple(values.shape[a] for a in order), np.uint16)
    copy_box(values.transpose(order), out)
    assert np.array_equal(out, values.transpose(order))


def test_a_part_of_a_larger_array_is_filled_and_nothing_else() -> None:
    values, out = _numbers(np.uint16, 300, 200), np.zeros((220, 330), np.uint16)
    copy_box(values.T, out[10:210, 7:307])
    assert np.array_equal(out[10:210, 7:307], values.T)
    assert not out[:10].any() and not out[210:].any() and not out[:, :7].any() and not out[:, 307:].any()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("memory", [1 << 20, 200_000, 70_000])
def test_ranges_of_a_turned_matrix_are_read_by_bands(tmp_path: Path, dtype: str, memory: int) -> None:
    values = _numbers(KINDS[dtype], 130, 1500)
    path = tmp_path / "weights"
    path.write_bytes(b"head" + values.tobytes())
    stored = Stored(BY_NAME[dtype], values.shape, (Extent(0, str(path), 4),))
    with SourceFiles([stamp(path)], memory) as files:
        for lo, hi in ((0, 1500), (3, 4), (700, 1100), (1, 1499)):
            out = np.zeros((hi - lo, 130), values.dtype)
            gather(files, stored, lo, out.shape, (1, 1500), out, 1 << 12)
            assert np.array_equal(out, values.T[lo:hi])


def test_a_band_is_read_once_for_all_that_is_written_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _numbers(np.uint16, 400, 3000)
    path = tmp_path / "weights"
    path.write_bytes(values.tobytes())
    stored = Stored(BY_NAME["bfloat16"], values.shape, (Extent(0, str(path), 0),))
    read: list[int] = []
    with SourceFiles([stamp(path)], 1_000_000) as files:
        real = SourceFiles.read_rows

        def counted(self: SourceFiles, where: str, at: int, step: int, width: int, into: memoryview) -> None:
            read.append(len(into))
            real(self, where, at, step, width, into)

        monkeypatch.setattr(SourceFiles, "read_rows", counted)
        for lo in range(0, 3000, 50):
            out = np.zeros((50, 400), np.uint16)
            gather(files, stored, lo, out.shape, (1, 3000), out, 1 << 16)
            assert np.array_equal(out, values.T[lo : lo + 50])
    assert sum(read) == values.nbytes
