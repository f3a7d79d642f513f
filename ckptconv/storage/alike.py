"""Tell that a file of ``torch.save`` is like one opened before, down to where every tensor lies.

The ranks of one pipeline stage write files that differ in their tensors' data and in a few numbers of the
arguments. Unpickling each of thousands takes longer than all else a plan needs, so one is opened in full, and
of the others the archive's directory (but for its checksums), the first and the last header, the byte order
and the pickle are compared with it.

The header that each entry has before its data repeats the directory. Where entries follow one another without
a gap, as torch writes them, the directory alone says where the data is, so that only those two are read: with
one for each tensor, 4,096 ranks of DeepSeek-V3 would take half a million reads all over the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final
from zlib import crc32

import numpy as np
import numpy.typing as npt

from ckptconv.errors import FormatError
from ckptconv.storage.window import Window
from ckptconv.storage.zipindex import ZipIndex

__all__ = ["Bytes", "Outline", "number_at", "numbers_apart", "outline"]

_CENTRAL: Final = Struct("<4s6H3L5H2L")
_CRC: Final = 16  # position of the checksum in a directory entry
_PICKLE: Final = "/data.pkl"
_ORDER: Final = "/byteorder"
_DESCRIPTORS: Final = (0, 16, 24)  # bytes after an entry's data
# Opcodes of numbers that stand in the pickle as they are, and their bytes.
_INTEGERS: Final = {ord("K"): 1, ord("M"): 2, ord("J"): 4}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Outline:
    """Hold all of a file but its tensors' data.

    Attributes:
        size: Its length.
        start: Where the archive's directory begins.
        tail: The bytes from there on, checksums zeroed.
        sums: Where in ``tail`` checksums are, but for that of the byte order.
        sum_of_pickle: Where in ``tail`` that of the pickle is.
        headers: Position and bytes of the first and the last header, and of the byte order with its own.
        pickle: The pickle, and where it begins.
        at: Where the pickle begins.
    """

    size: int
    start: int
    tail: Bytes
    sums: npt.NDArray[np.intp]
    sum_of_pickle: int
    headers: tuple[tuple[int, bytes], ...]
    pickle: Bytes
    at: int

    def pickle_of(self, window: Window) -> Bytes | None:
        """Return the pickle of another file if all else is as in this one, else None."""
        if window.size != self.size:
            return None
        raw = window.read_at(self.start, len(self.tail))
        tail = np.frombuffer(bytearray(raw), np.uint8)
        tail[self.sums] = 0
        if not np.array_equal(tail, self.tail):
            return None
        if any(window.read_at(at, len(header)) != header for at, header in self.headers):
            return None
        pickle = window.read_at(self.at, len(self.pickle))
        stored = int.from_bytes(raw[self.sum_of_pickle : self.sum_of_pickle + 4], "little")
        # As `ZipIndex.read` does; 0 stands where torch was told not to compute it.
        return np.frombuffer(pickle, np.uint8) if stored in (0, crc32(pickle)) else None


def outline(window: Window) -> Outline | None:
    """Read the outline of a zip archive of torch that is known to be sound.

    None if others are not to be compared with it: it has no pickle, or gaps between its entries.
    """
    index = ZipIndex(window)
    names = [n for n in index.sizes if n.endswith(_PICKLE)]
    if window.start or len(names) != 1:
        return None
    entries = sorted(index.positions.items(), key=lambda entry: entry[1])
    ends = [at for _, at in entries[1:]] + [index.start]
    headers = []
    for i, ((name, at), end) in enumerate(zip(entries, ends, strict=True)):
        try:
            begin, size = index.locate(name)
        except FormatError:  # of an entry that opening does not read
            return None
        if end - begin - size not in _DESCRIPTORS:
            return None
        if i in (0, len(entries) - 1) or name.endswith(_ORDER):
            headers.append((at, window.read_at(at, begin - at + (size if name.endswith(_ORDER) else 0))))
    begin, size = index.locate(names[0])
    pickle = np.frombuffer(window.read_at(begin, size), np.uint8)
    tail = np.frombuffer(bytearray(window.read_at(index.start, window.size - index.start)), np.uint8)
    places = _sums(tail.tobytes(), len(index.sizes))
    sums = np.array([p + i for n, p in places.items() if not n.endswith(_ORDER) for i in range(4)], np.intp)
    tail[sums] = 0
    return Outline(window.size, index.start, tail, sums, places[names[0]], tuple(headers), pickle, begin)


def _sums(tail: bytes, count: int) -> dict[str, int]:
    """Return where the checksum of each entry is."""
    found: dict[str, int] = {}
    at = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(tail, at)
        if fields[0] != b"PK\1\2":
            raise FormatError("the archive's directory is damaged")
        name = tail[at + _CENTRAL.size : at + _CENTRAL.size + fields[10]]
        found[name.decode()] = at + _CRC
        at += _CENTRAL.size + sum(fields[10:13])
    return found


def numbers_apart(
    one: Bytes, two: Bytes, changed: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]] | None:
    """Find where pickles of equal length hold the numbers in which they differ.

    Args:
        one: A pickle.
        two: Another.
        changed: The values, by name, that are known to differ: in the first and in the second.

    Returns:
        Position and length of each value; None if the pickles differ in any other byte, or two of the values
        changed alike, so that it does not show which is which.
    """
    if len(set(changed.values())) < len(changed):
        return None
    rest = set(np.flatnonzero(one != two).tolist())
    found: dict[str, tuple[int, int]] = {}
    for name, values in changed.items():
        for opcode in sorted(rest):
            place = _operand(one, two, opcode, values)
            if place is not None:
                found[name] = place
                rest -= set(range(place[0], sum(place)))
                break
        else:
            return None
    return None if rest else found


def _operand(one: Bytes, two: Bytes, at: int, values: tuple[int, int]) -> tuple[int, int] | None:
    """Return where the number lies that byte ``at`` belongs to, if it is these values."""
    for opcode, length in _INTEGERS.items():
        for begin in range(max(1, at - length + 1), at + 1):
            if one[begin - 1] == two[begin - 1] == opcode and values == tuple(
                number_at(p, begin, length) for p in (one, two)
            ):
                return begin, length
    return None


def number_at(pickle: Bytes, begin: int, length: int) -> int:
    """Return the operand of an opcode for whole numbers; only those of four bytes have a sign."""
    return int.from_bytes(pickle[begin : begin + length].tobytes(), "little", signed=length == 4)
