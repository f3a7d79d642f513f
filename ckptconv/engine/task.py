"""Carry out a part of a plan: fill some blocks of one output file, write and digest them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

import xxhash

from ckptconv.containers.base import FileLayout
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler
from ckptconv.engine.options import DIGEST_BLOCK
from ckptconv.engine.sink import Sink
from ckptconv.engine.sums import Crc
from ckptconv.records import dataclass

__all__ = ["Opened", "Result", "Task", "block_count", "steps", "tasks_of"]


@dataclass(frozen=True, slots=True)
class Task:
    """Name some blocks of one output file, the unit in which work is handed out.

    Attributes:
        file: Number of the file in the plan.
        first: Its first block, each of `DIGEST_BLOCK` bytes.
        blocks: How many.
    """

    file: int
    first: int
    blocks: int

    def span(self, size: int) -> tuple[int, int]:
        """Return the first byte, and one past the last, in a file of ``size`` bytes."""
        lo = self.first * DIGEST_BLOCK
        return lo, min(lo + self.blocks * DIGEST_BLOCK, size)


@dataclass(frozen=True, slots=True)
class Result:
    """Say what a task that is done found.

    Attributes:
        task: The task.
        digests: XXH3-64 of each of its blocks, as the plan has them: with zeros in place of sums of data.
        crcs: The sum of each tensor's bytes in its span, by the tensor's number in the layout, where the
            container records sums.
        overflows: Values that became infinite in a cast.
        sent: Receipts of the parts of an upload that another process than the asking one has sent.
    """

    task: Task
    digests: tuple[bytes, ...]
    crcs: Mapping[int, Crc]
    overflows: int
    sent: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opened:
    """Hold a file that is being written.

    Attributes:
        layout: Its layout.
        filler: Computes its bytes.
        sink: Where they go.
    """

    layout: FileLayout
    filler: Filler
    sink: Sink


def block_count(size: int) -> int:
    """Return the number of blocks of a file; an empty one has one block."""
    return max(1, -(-size // DIGEST_BLOCK))


def tasks_of(file: int, size: int, blocks: int) -> Iterator[Task]:
    """Cut file number ``file``, of ``size`` bytes, into tasks of at most ``blocks`` blocks."""
    count = block_count(size)
    for first in range(0, count, blocks):
        yield Task(file, first, min(blocks, count - first))


def steps(task: Task, opened: Opened, buffers: Buffers, *, tile: int) -> Iterator[Result | None]:
    """Fill the task's bytes and write them, in order, at their offsets.

    What is written depends on the plan alone, so that a task may run again, or twice at the same time. Of a
    container that records sums nothing is written that `ckptconv.engine.sums.seal` writes.

    Args:
        task: The task.
        opened: Its file.
        buffers: The calling thread's memory.
        tile: Bytes made at a time; it divides a block.

    Yields:
        None after each tile, and at last what was found; the buffers may be others' in between.

    Raises:
        MismatchError: if a replica differs.
        FormatError: if a source file ends early.
        InputChangedError: if a source file is not the one the plan was made from.
        OSError: if reading or writing fails.
    """
    layout, filler, sink = opened.layout, opened.filler, opened.sink
    lo, hi = task.span(layout.size)
    digests: list[bytes] = []
    crcs: dict[int, Crc] = {}
    overflows = 0
    for start in range(lo, max(hi, lo + 1), DIGEST_BLOCK):
        end, hasher = min(start + DIGEST_BLOCK, hi), xxhash.xxh3_64()
        for at in range(start, end, tile):
            view, spans, over = filler.make(at, min(at + tile, end), buffers)
            overflows += over
            hasher.update(view)
            runs = [(0, len(view))]
            if filler.sums is not None:
                filler.sums.add(spans, view, at, crcs)
                runs = filler.sums.settle(view, at, crcs)
            for a, b in runs:
                sink.write(view[a:b], at + a)
            yield None
        digests.append(hasher.digest())
    yield Result(task, tuple(digests), crcs, overflows)
