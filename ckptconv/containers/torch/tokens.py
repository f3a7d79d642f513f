"""Find where the instructions of a large pickle begin, with numpy.

An instruction says how long it is, so where one begins depends on all before it. Here the pickle is cut into
blocks where one is likely to begin, and in all of them one instruction after the other is skipped at once.
That a cut was right is proved by the block before, which ends there; what was cut wrong is gone over again.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

__all__ = ["ALLOWED", "PAD", "starts"]

PAD: Final = 16  # bytes of zeros that follow the pickle
_BLOCK: Final = 1 << 14
_STRIDE: Final = 16  # instructions skipped before looking for blocks that ended
_ROUNDS: Final = 12
_AGAIN: Final = 3  # times each block may be gone through
_LANDMARK: Final = b"ub"  # SETITEMS, BUILD: how the state of an object ends
_NEAR: Final = 2048
_LONGEST: Final = 1024  # bytes of the two lines of a name

# Bytes of the instructions that picklers of protocols 2 to 5 write for plain objects (CPython 3.14,
# ``Lib/pickletools.py``); 0 where a count or lines follow.
_FIXED: Final = {
    **dict.fromkeys(b".(\x94N\x88\x89)]}aseut\x85\x86\x87\x93R\x81b", 1), **dict.fromkeys(b"\x80qhK", 2),
    **dict.fromkeys(b"M", 3), **dict.fromkeys(b"rjJ", 5), **dict.fromkeys(b"\x95G", 9),
}  # fmt: skip
_ONE: Final = (0x8A, 0x8C, ord("C"))  # a count of one byte
_FOUR: Final = (ord("X"), ord("B"))
_LINES: Final = ord("c")
ALLOWED: Final = frozenset({*_FIXED, *_ONE, *_FOUR, _LINES})

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Positions = npt.NDArray[np.int64]


@cache
def _tables() -> tuple[Bytes, Bytes]:
    lengths = np.ones(256, np.uint8)  # of what is not allowed, met in a block that was guessed wrong
    kinds = np.zeros(256, np.uint8)
    for code, length in _FIXED.items():
        lengths[code] = length
    kinds[list(_ONE)] = 1
    kinds[list(_FOUR)] = 2
    kinds[_LINES] = 3
    lengths[kinds > 0] = 0
    lengths[0] = 0  # what pads the end, and no instruction
    return lengths, kinds


def starts(raw: bytes, data: Bytes, size: int) -> npt.NDArray[np.bool_] | None:
    """Return for each byte whether an instruction begins there; None where that cannot be found soon.

    What is found is one chain from byte 0 to the end. Whether its instructions are allowed is not checked.

    Args:
        raw: The pickle, and `PAD` zeros.
        data: The same, as an array.
        size: Length of the pickle.
    """
    begins = np.unique([_guess(raw, at) if at else 0 for at in range(0, size, _BLOCK)])
    ends = np.append(begins[1:], size)
    walk = _Walk(raw, data, size)
    lanes = np.arange(len(begins))
    entries = begins.copy()
    exits = np.empty_like(entries)
    left = _AGAIN * len(begins)
    for _ in range(_ROUNDS):
        left -= len(lanes)
        if left < 0:
            return None
        exits[lanes] = walk.skip(entries[lanes], ends[lanes])
        wrong = entries[1:] != exits[:-1]
        if not wrong.any():
            return walk.seen[:size] if exits[-1] == size else None
        # A chain that is no chain may leap over the rest: of those that leap, the ones that stand are last.
        near = wrong & (exits[:-1] < ends[:-1] + _BLOCK)
        lanes = np.flatnonzero(near if near.any() else wrong) + 1
        entries[lanes] = exits[lanes - 1]
        for begin, end in zip(begins[lanes].tolist(), ends[lanes].tolist(), strict=True):
            walk.seen[begin:end] = False
    return None


def _guess(raw: bytes, at: int) -> int:
    found = raw.find(_LANDMARK, at, at + _NEAR)
    return at if found < 0 else found + len(_LANDMARK)


class _Walk:
    """Skip instructions in many blocks at once.

    Attributes:
        seen: Whether an instruction was found to begin at a byte.
    """

    def __init__(self, raw: bytes, padded: Bytes, size: int) -> None:
        self._raw = raw
        self._data = padded
        self._size = size
        self.seen = np.zeros(len(padded), np.bool_)

    def skip(self, entries: Positions, ends: Positions) -> Positions:
        """Go from each entry up to its end; return the first place that is not before it."""
        lengths, _ = _tables()
        exits = entries.copy()
        lanes = np.flatnonzero(entries < ends)
        at = entries[lanes]
        limit = ends[lanes]
        path = np.empty((_STRIDE, len(at)), np.int64)
        while len(at):
            for step in range(_STRIDE):
                path[step] = at
                length = lengths.take(self._data.take(at))
                counted = np.flatnonzero(length == 0)
                at = at + length
                if len(counted):
                    at[counted] += self._counted(at[counted])
            going = at < limit
            if np.count_nonzero(going) == len(at):
                self.seen[path] = True
            else:
                self.seen[path[path < limit]] = True  # not beyond: the chain may be none
                ended = np.flatnonzero(~going)
                passed = np.vstack([path[:, ended], at[ended]])
                first = (passed >= limit[ended]).argmax(axis=0)
                exits[lanes[ended]] = passed[first, np.arange(len(ended))]
                lanes, at, limit = lanes[going], at[going], limit[going]
                path = path[:, : len(at)].copy()
        return exits

    def _counted(self, at: Positions) -> Positions:
        """Return the bytes of instructions that a count and as many bytes follow, or two lines."""
        data = self._data
        kinds = _tables()[1][data[at]]
        length: Positions = data[at + 1].astype(np.int64)
        four = np.flatnonzero(kinds == 2)
        if len(four):
            where = at[four]
            length[four] += (
                (data[where + 2].astype(np.int64) << 8)
                + (data[where + 3].astype(np.int64) << 16)
                + (data[where + 4].astype(np.int64) << 24)
                + 3
            )
        length += 2
        for i in np.flatnonzero(kinds == 3).tolist():
            begin = int(at[i])
            middle = self._raw.find(b"\n", begin + 1, begin + _LONGEST)
            end = self._raw.find(b"\n", middle + 1, begin + _LONGEST) if middle >= 0 else -1
            length[i] = end + 1 - begin if end >= 0 else self._size
        return np.minimum(length, self._size - at)
