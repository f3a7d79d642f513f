"""Put the sums that a container records of its tensors' data beside these while they are written.

What lies behind a tensor says its sum, and is made with it where both lie in one block: so nearly all of a
file is written in long runs, and once. The rest, and what says several sums, is left to `seal`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from isal.isal_zlib import crc32, crc32_combine

from ckptconv.containers.base import FileLayout
from ckptconv.containers.container import seal_of
from ckptconv.engine.options import DIGEST_BLOCK
from ckptconv.engine.sink import Sink
from ckptconv.records import dataclass

__all__ = ["Crc", "Sums", "seal"]

Span = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Crc:
    """The CRC-32 of a run of bytes at byte ``at`` of a file, ``length`` bytes long."""

    at: int
    value: int
    length: int


class Sums:
    """Seal what lies between the tensors of a file, piece by piece; safe to use from many threads.

    Args:
        layout: The file's layout, of a container that records sums.
    """

    def __init__(self, layout: FileLayout) -> None:
        self._layout = layout
        self._pieces = [at for at, _ in layout.fixed]
        starts = [t.offset for t in layout.tensors]
        self._before = [bisect_right(starts, at) - 1 for at in self._pieces]  # the last tensor; -1 for none
        ends = [(at + len(raw) - 1) // DIGEST_BLOCK for at, raw in layout.fixed]
        blocks = [start // DIGEST_BLOCK for start in starts]
        self._early = [t < 0 or blocks[t] == end for t, end in zip(self._before, ends, strict=True)]
        _, self._seal_piece = seal_of(layout)

    def add(self, spans: Sequence[Span], data: memoryview, lo: int, to: dict[int, Crc]) -> None:
        """Carry sums on over bytes ``lo`` and up of the file.

        Args:
            spans: The tensors in ``data``: the number of each, and where its bytes begin and end there.
            data: The bytes.
            lo: Position of the first.
            to: The sums by the number of the tensor.
        """
        for tensor, a, b in spans:
            found = to.get(tensor)
            if found is None:
                to[tensor] = Crc(lo + a, crc32(data[a:b]), b - a)
            else:
                to[tensor] = Crc(found.at, crc32(data[a:b], found.value), found.length + b - a)

    def settle(self, data: memoryview, lo: int, crcs: Mapping[int, Crc]) -> list[tuple[int, int]]:
        """Put sums into bytes ``lo`` and up of the file; return the runs of these that are as they stay.

        Args:
            data: The bytes, with zeros in place of the sums.
            lo: Position of the first.
            crcs: The sums of the tensors that end in these bytes, and begin in the same block.
        """
        runs, start, hi = [], 0, lo + len(data)
        for piece in range(max(0, bisect_right(self._pieces, lo) - 1), bisect_left(self._pieces, hi)):
            at, raw = self._layout.fixed[piece]
            a, b = max(at, lo), min(at + len(raw), hi)
            if a >= b:
                continue
            crc = crcs.get(self._before[piece])
            sealed = self.sealed(piece, 0 if crc is None else crc.value) if self._early[piece] else None
            if sealed is None:
                runs.append((start, a - lo))
                start = b - lo
            elif sealed is not raw:
                data[a - lo : b - lo] = sealed[a - at : b - at]
        runs.append((start, len(data)))
        return [(a, b) for a, b in runs if a < b]

    def late(self) -> list[tuple[int, int]]:
        """List the pieces that are not written with their tensors, and the tensor before each."""
        pieces = enumerate(zip(self._before, self._early, strict=True))
        return [(i, tensor) for i, (tensor, early) in pieces if not early or self.sealed(i, 0) is None]

    def sealed(self, piece: int, crc: int) -> bytes | None:
        """Return a piece with the sum of the tensor before it; None if it says others' too."""
        tensor = self._before[piece]
        if tensor < 0:
            return self._layout.fixed[piece][1]
        return self._seal_piece(self._layout, piece, tensor, crc)


def seal(layout: FileLayout, crcs: Mapping[int, Sequence[Crc]], sink: Sink) -> None:
    """Write what of a file is not written with its tensors, whose data is complete.

    Args:
        layout: The layout, of a container that records sums.
        crcs: The sums of each tensor's parts, by its number; empty tensors have none.
        sink: Where the file is.
    """
    values = [0] * len(layout.tensors)
    for tensor, parts in crcs.items():
        for part in sorted(parts, key=lambda c: c.at):
            values[tensor] = crc32_combine(values[tensor], part.value, part.length)
    sums, rest = Sums(layout), []
    for piece, tensor in sums.late():
        if (sealed := sums.sealed(piece, values[tensor])) is None:
            rest.append(layout.fixed[piece])
        else:
            sink.write(sealed, layout.fixed[piece][0])
    if rest:
        changed = dict(seal_of(layout)[0](layout, values))
        for at, raw in rest:
            sink.write(changed.get(at, raw), at)
