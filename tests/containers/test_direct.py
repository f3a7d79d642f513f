"""What is written past the page cache is the file's content, whatever parts of it can go that way."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptconv.engine.buffers import Buffers
from ckptconv.engine.sink import PartFile, create
from ckptconv.places.direct import ALIGNMENT, DirectFile

SIZE = 1 << 20


def _content() -> np.ndarray:
    data = Buffers().take("content", SIZE)
    data[...] = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    return data


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, SIZE), max_size=12), shift=st.sampled_from([0, 8, 512]))
def test_any_pieces_make_the_file(tmp_path: Path, cuts: list[int], shift: int) -> None:
    """Also from memory that lies elsewhere in a block than the bytes do in the file."""
    content = _content()
    create(tmp_path / "x.part", SIZE - shift)
    sink = PartFile(tmp_path, "x")
    bounds = [shift, *sorted(c for c in cuts if c > shift), SIZE]
    for lo, hi in pairwise(bounds):
        sink.write(content[lo:hi].data, lo - shift)
    sink.finish()
    assert (tmp_path / "x.part").read_bytes() == content[shift:].tobytes()


def test_whole_blocks_go_past_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "x"
    create(path, SIZE)
    file = DirectFile(path)
    if not file.works:
        pytest.skip("the temporary folder is not on a disk of this machine")
    content = _content()
    assert file.write(content.data, 0) == (0, SIZE)
    assert file.write(content[100:].data, 100) == (ALIGNMENT - 100, SIZE - 100)
    assert file.write(content[: SIZE - 1].data, 0) == (0, SIZE - ALIGNMENT)
    assert file.write(content[8:].data, 0)[1] == 0
    file.close()
    assert path.read_bytes() == content.tobytes()


@pytest.mark.parametrize("short", [0, 5 * ALIGNMENT, 5 * ALIGNMENT + 3])
def test_a_file_system_that_refuses_gets_the_bytes_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    content, pwrite = _content(), os.pwrite
    create(tmp_path / "x.part", SIZE)
    sink = PartFile(tmp_path, "x")
    direct = sink._direct._fd

    def usual(fd: int, data: memoryview, at: int) -> int:
        if fd != direct:
            return pwrite(fd, data, at)
        if at or not short:
            raise OSError(errno.EINVAL, "Invalid argument")
        other = os.open(sink.path, os.O_WRONLY)
        try:
            return pwrite(other, data[:short], at)
        finally:
            os.close(other)

    monkeypatch.setattr(os, "pwrite", usual)
    sink.write(content.data, 0)
    monkeypatch.undo()
    sink.finish()
    assert (tmp_path / "x.part").read_bytes() == content.tobytes()


def test_other_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    create(tmp_path / "x.part", SIZE)
    sink = PartFile(tmp_path, "x")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as error:
        sink.write(_content().data, 0)
    monkeypatch.undo()
    assert error.value.filename == str(tmp_path / "x.part")
    sink.abort()
