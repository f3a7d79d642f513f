"""Parts of rows are read many in one call, or held for all who want others, and a file that ends is named."""

import os
from pathlib import Path

import pytest

from ckptconv.errors import FormatError
from ckptconv.places.files import SourceFiles, stamp


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "rows"
    made.write_bytes(os.urandom(1 << 20))
    return str(made)


@pytest.mark.parametrize(
    ("stride", "width", "count"),
    [(64, 3, 2000), (1000, 1000, 7), (16384, 100, 60), (20000, 600, 50), (7, 1, 1)],
)
def test_rows_are_what_lies_there(path, stride, width, count):
    data = Path(path).read_bytes()
    out = bytearray(width * count)
    with SourceFiles([stamp(path)]) as files:
        files.read_rows(path, 11, stride, width, memoryview(out))
    assert bytes(out) == b"".join(data[11 + i * stride : 11 + i * stride + width] for i in range(count))


@pytest.mark.parametrize("stride", [64, 20000])
def test_a_file_that_ends_early_is_named(path, stride):
    with (
        SourceFiles([stamp(path)]) as files,
        pytest.raises(FormatError, match="ends at byte 1048576") as found,
    ):
        files.read_rows(path, (1 << 20) - 5 * stride, stride, 40, memoryview(bytearray(40 * 9)))
    assert found.value.where == path


def test_what_is_held_is_read_once_and_bounded(path, monkeypatch):
    data = Path(path).read_bytes()
    with SourceFiles([stamp(path)], memory=1000) as files:
        reads = []
        real = files.read_into
        monkeypatch.setattr(files, "read_into", lambda *a: (reads.append(a[1]), real(*a)))
        assert files.hold(path, 5, 600) == data[5:605]
        assert files.hold(path, 5, 600) == data[5:605] and reads == [5]
        assert files.hold(path, 700, 500) == data[700:1200]  # there is no room for both
        assert files.hold(path, 5, 600) == data[5:605] and reads == [5, 700, 5]
        assert files.hold(path, 0, 1001) is None
