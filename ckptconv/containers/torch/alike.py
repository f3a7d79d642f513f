"""Tell that a file of ``torch.save`` is like one opened before, down to where every tensor lies.

The ranks of one pipeline stage write files that differ in their tensors' data and in a few numbers of the
arguments. Unpickling each of thousands takes longer than all else a plan needs, so one is opened in full, and
of the others the archive's directory (but for its checksums), the first and the last header, the byte order
and the pickle are compared with it.

Python's random state, 625 whole numbers, differs in all ranks, and with it the pickle's length: where it is
stored, and not used for anything else, it does not count. The padding after the pickle makes up for it.

The header that each entry has before its data repeats the directory. Where entries follow one another without
a gap, as torch writes them, the directory alone says where the data is, so that only those two are read: with
one for each tensor, 4,096 ranks of DeepSeek-V3 would take half a million reads all over the disk.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from isal.isal_zlib import crc32

from ckptconv.containers.torch import inert
from ckptconv.containers.torch.zipindex import ZipIndex
from ckptconv.errors import FormatError
from ckptconv.places.window import Window
from ckptconv.records import dataclass

__all__ = ["Bytes", "Outline", "number_at", "numbers_apart", "outline"]

_CENTRAL: Final = Struct("<4s6H3L5H2L")
_LOCAL: Final = Struct("<4s5H3L2H")
_FIXED: Final = 28  # bytes of a local header before the length of its extra field
_U32: Final = Struct("<L")
_CRC: Final = 16  # positions in a directory entry: of the checksum,
_SIZES: Final = 20  # of the two lengths,
_HEADER: Final = 42  # and of where the header is
_PICKLE: Final = "/data.pkl"
_ORDER: Final = "/byteorder"
_DESCRIPTORS: Final = (0, 16, 24)  # bytes after an entry's data
# Opcodes of numbers that stand in the pickle as they are, and their bytes.
_INTEGERS: Final = {ord("K"): 1, ord("M"): 2, ord("J"): 4}

# Python's random state as Megatron-LM stores it (core_v0.16.1, ``training/checkpointing.py``,
# ``get_rng_state``): (3, 625 whole numbers below 2**32, None), in protocol 2 or later. Each number's first
# byte tells its length.
_NUMBERS: Final = re.compile(rb"(?:K.|M..|J....|\x8a\x05.....)+", re.DOTALL)
_STATE: Final = re.compile(rb"random_rng_state(?:q.|r....|\x94)K\x03\((?=[KMJ\x8a])", re.DOTALL)
_REST: Final = re.compile(rb"t(?:q.|r....|\x94)N\x87", re.DOTALL)

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
else:
    Bytes = Any


@dataclass(frozen=True, slots=True)
class Outline:
    """Hold all of a file but its tensors' data.

    Attributes:
        size: Its length.
        start: Where the archive's directory begins.
        tail: The bytes from there on, checksums zeroed.
        free: Where in ``tail`` bytes may differ: checksums but for that of the byte order, the length of the
            pickle, and where the header of the entry after it is. They are zeroed.
        places: Where in ``tail`` the pickle's entry is, and that of the entry after it.
        headers: Position and bytes of the first and the last header, and of the byte order with its own.
        following: The entry after the pickle: its header and what else opening reads of it, where its data
            begins, and how far that is from the pickle's end.
        pickle: The pickle.
        at: Where the pickle begins.
        numbers: Where in it the numbers of the random state begin and end; ``(0, 0)`` if there are none.
    """

    size: int
    start: int
    tail: Bytes
    free: npt.NDArray[np.intp]
    places: tuple[int, int]
    headers: tuple[tuple[int, bytes], ...]
    following: Following
    pickle: Bytes
    at: int
    numbers: tuple[int, int]

    def pickle_of(self, window: Window) -> Bytes | None:
        """Return the pickle of another file if all else is as in this one, else None.

        The numbers of its random state are replaced by those of this one.
        """
        if window.size != self.size:
            return None
        raw = window.read_at(self.start, len(self.tail))
        tail = np.frombuffer(bytearray(raw), np.uint8)
        tail[self.free] = 0
        if not np.array_equal(tail, self.tail):
            return None
        if any(window.read_at(at, len(header)) != header for at, header in self.headers):
            return None
        at, after = self.places
        (stored, size, again), (header,) = _u32s(raw, at + _CRC, 3), _u32s(raw, after + _HEADER, 1)
        if size != again or header != self.at + size + self.following.gap:
            return None
        if not self.following.is_at(window, header):
            return None
        pickle = window.read_at(self.at, size)
        # As `ZipIndex.read` does; 0 stands where torch was told not to compute it.
        if stored not in (0, crc32(pickle)):
            return None
        begin, end = self.numbers
        if end and (found := _NUMBERS.match(pickle, begin)) is not None:
            pickle = pickle[:begin] + self.pickle[begin:end].tobytes() + pickle[found.end() :]
        return np.frombuffer(pickle, np.uint8) if len(pickle) == len(self.pickle) else None


@dataclass(frozen=True, slots=True)
class Following:
    """Hold what is known of the entry after the pickle.

    Attributes:
        gap: Bytes between the pickle's end and this entry's header.
        header: Its local header up to the length of the extra field, which pads the data to its place.
        name: Its name.
        begin: Where its data begins.
        data: Its data if opening a file reads it (the byte order), else nothing.
    """

    gap: int
    header: bytes
    name: bytes
    begin: int
    data: bytes

    def is_at(self, window: Window, at: int) -> bool:
        """Tell whether a file has the same entry, its header at ``at``, its data where this one has it."""
        wide = at + _LOCAL.size + len(self.name)
        if wide > self.begin:
            return False
        raw = window.read_at(at, self.begin + len(self.data) - at)
        extra = int.from_bytes(raw[_FIXED : _LOCAL.size], "little")
        same = raw[:_FIXED] == self.header and raw[_LOCAL.size : wide - at] == self.name
        return same and wide + extra == self.begin and raw.endswith(self.data)


def _u32s(raw: bytes, at: int, count: int) -> tuple[int, ...]:
    return tuple([_U32.unpack_from(raw, at + 4 * i)[0] for i in range(count)])


def outline(window: Window) -> Outline | None:
    """Read the outline of a zip archive of torch that is known to be sound.

    None if others are not to be compared with it: it has no pickle, or gaps between its entries.
    """
    index = ZipIndex(window)
    names = [n for n in index.sizes if n.endswith(_PICKLE)]
    if window.start or len(names) != 1:
        return None
    entries = sorted(index.positions.items(), key=lambda entry: entry[1])
    order = [name for name, _ in entries]
    ends = [at for _, at in entries[1:]] + [index.start]
    after = order.index(names[0]) + 1
    if after == len(order):
        return None
    headers = []
    following: Following | None = None
    for i, ((name, at), end) in enumerate(zip(entries, ends, strict=True)):
        try:
            begin, size = index.locate(name)
        except FormatError:  # of an entry that opening does not read
            return None
        if end - begin - size not in _DESCRIPTORS:
            return None
        shown = size if name.endswith(_ORDER) else 0
        if i == after:
            previous, length = index.locate(names[0])
            head = window.read_at(at, _FIXED)
            data = window.read_at(begin, shown)
            following = Following(at - previous - length, head, name.encode(), begin, data)
        elif i in (0, len(entries) - 1) or shown:
            headers.append((at, window.read_at(at, begin - at + shown)))
    assert following is not None
    begin, size = index.locate(names[0])
    pickle = window.read_at(begin, size)
    tail = np.frombuffer(bytearray(window.read_at(index.start, window.size - index.start)), np.uint8)
    places = _entries(tail.tobytes(), len(index.sizes))
    free = [p + _CRC + i for n, p in places.items() if not n.endswith(_ORDER) for i in range(4)]
    pair = (places[names[0]], places[order[after]])
    free += [pair[0] + _SIZES + i for i in range(8)] + [pair[1] + _HEADER + i for i in range(4)]
    zeroed = np.array(free, np.intp)
    tail[zeroed] = 0
    return Outline(
        window.size, index.start, tail, zeroed, pair, tuple(headers), following,
        np.frombuffer(pickle, np.uint8), begin, _numbers(pickle),
    )  # fmt: skip


def _numbers(pickle: bytes) -> tuple[int, int]:
    """Find the numbers of Python's random state, if they are stored once and nothing is made of them."""
    state = _STATE.search(pickle)
    found = _NUMBERS.match(pickle, state.end()) if state is not None else None
    if found is None or _REST.match(pickle, found.end()) is None:
        return 0, 0
    return found.span() if inert.used_once(pickle, *found.span()) else (0, 0)


def _entries(tail: bytes, count: int) -> dict[str, int]:
    """Return where each entry is in the directory."""
    found: dict[str, int] = {}
    at = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(tail, at)
        if fields[0] != b"PK\1\2":
            raise FormatError("the archive's directory is damaged")
        name = tail[at + _CENTRAL.size : at + _CENTRAL.size + fields[10]]
        found[name.decode()] = at
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
