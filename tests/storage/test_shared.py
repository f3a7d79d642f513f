"""Several readers of the same parts of a file have it read once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptconv.storage.files import SourceFiles, stamp
from ckptconv.storage.shared import SharedBlocks

DATA = bytes(range(251)) * 4000  # 1 MB, of no period that divides a block


def test_what_is_read_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with SourceFiles([stamp(path)]) as files:
        files.share(1 << 18)
        for offset, count in ((0, 5000), (131_000, 300_000), (len(DATA) - 700, 700), (40_000, 131_072)):
            buffer = bytearray(count)
            files.read_into(str(path), offset, memoryview(buffer))
            assert buffer == DATA[offset : offset + count]
        with pytest.raises(Exception, match="3 bytes early"):
            files.read_into(str(path), len(DATA) - 997, memoryview(bytearray(1000)))


def test_readers_at_the_same_time_share_one_read() -> None:
    calls: list[int] = []
    together = threading.Barrier(4)

    def read(path: str, offset: int, buffer: memoryview) -> int:
        calls.append(offset)
        part = DATA[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    blocks = SharedBlocks(read, 1 << 20)

    def one(number: int) -> bool:
        together.wait()
        buffer = bytearray(400_000)
        return blocks.read_into("x", 1000 * number, memoryview(buffer)) == 400_000 and (
            buffer == DATA[1000 * number : 1000 * number + 400_000]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(4)))
    assert len(calls) == len(set(calls)) == 4


def test_an_error_reaches_every_reader_and_is_tried_again() -> None:
    fail = [True]

    def read(path: str, offset: int, buffer: memoryview) -> int:
        if fail.pop() if fail else False:
            raise OSError("no disk")
        return len(buffer)

    blocks = SharedBlocks(read, 1 << 20)
    with pytest.raises(OSError, match="no disk"):
        blocks.read_into("x", 0, memoryview(bytearray(10)))
    assert blocks.read_into("x", 0, memoryview(bytearray(10))) == 10
