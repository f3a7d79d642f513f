"""Tell that a file of ``torch.save`` is like one opened before, down to where every tensor lies.

The ranks of one pipeline stage write files that differ in their tensors' data and in a few numbers of the
arguments. Unpickling each of thousands takes longer than all else a plan needs, so one is opened in full, and
of the others the archive's directory (but for its checksums), the first and the last header, the byte order
and the pickle are compared with it.

Python's random state, 625 whole numbers, differs in all ranks, and with it the pickle's length: where it is
stored, and not used for anything else, it does not count. The padding after the pickle makes up for it, in
steps of 64 bytes: what follows lies that much further on in some files, all of it alike.

The header that each entry has before its data repeats the directory. Where entries follow one another without
a gap, as torch writes them, the directory alone says where the data is, so that only those two are read: with
one for each tensor, 4,096 ranks of DeepSeek-V3 would take half a million reads all over the disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from isal.isal_zlib import crc32

from ckptconv.containers.torch import inert
from ckptconv.containers.torch.zipindex import ZipIndex
from ckptconv.errors import FormatError
from ckptconv.places.window import Window
from ckptconv.records import dataclass

__all__ = ["Outline", "Text", "outline", "text_of"]

_CENTRAL: Final = Struct("<4s6H3L5H2L")
_LOCAL: Final = Struct("<4s5H3L2H")
_FIXED: Final = 28  # bytes of a local header before the length of its extra field
_END: Final = Struct("<4s4H2LH")
_U32: Final = Struct("<L")
_32: Final = 0xFFFFFFFF
_CRC: Final = 16  # positions in a directory entry: of the checksum,
_SIZES: Final = 20  # of the two lengths,
_HEADER: Final = 42  # and of where the header is
_PICKLE: Final = "/data.pkl"
_ORDER: Final = "/byteorder"
_DESCRIPTORS: Final = (0, 16, 24)  # bytes after an entry's data
# A number that stands in the pickle as it is, and that of a dict's value: a key or the dict's end follows.
_NUMBER: Final = re.compile(rb"K.|M..|J....", re.DOTALL)
_VALUE: Final = re.compile(rb"(?:K.|M..|J....)(?=[X\x8chjus])", re.DOTALL)
_LONGEST: Final = 5
_STORED: Final = rb"(?s:q.|r....|\x94)?\Z"

# Python's random state as Megatron-LM stores it (core_v0.16.1, ``training/checkpointing.py``,
# ``get_rng_state``): (3, 625 whole numbers below 2**32, None), in protocol 2 or later. Each number's first
# byte tells its length.
_NUMBERS: Final = re.compile(rb"(?:K.|M..|J....|\x8a\x05.....)+", re.DOTALL)
_STATE: Final = re.compile(rb"random_rng_state(?:q.|r....|\x94)K\x03\((?=[KMJ\x8a])", re.DOTALL)
_REST: Final = re.compile(rb"t(?:q.|r....|\x94)N\x87", re.DOTALL)

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Indices = npt.NDArray[np.intp]
    Values = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outline:
    """Hold all of a file but its pickle and its tensors' data.

    Attributes:
        size: Its length.
        tail: The bytes from the archive's directory on, those that may differ zeroed.
        free: Where in ``tail`` they are: checksums but for that of the byte order, the length of the pickle,
            and where the headers after it and the directory are.
        shifted: What ``tail`` says of where those are, but for the header that follows the pickle.
        places: Where in ``tail`` the pickle's entry is, and that of the entry after it.
        headers: Position and bytes of the last header, of the byte order, and of its own.
        first: The first header, which is the pickle's.
        following: The entry after the pickle: its header and what else opening reads of it, where its data
            begins, and how far that is from the pickle's end.
        at: Where the pickle begins.
    """

    size: int
    tail: Bytes
    free: Indices
    shifted: Positions
    places: tuple[int, int]
    headers: tuple[tuple[int, bytes], ...]
    first: bytes
    following: Following
    at: int

    def pickle_of(self, window: Window) -> bytes | None:
        """Return the pickle of another file if all else is as in this one, else None.

        What follows the pickle may lie further on, or less far, by the difference in size.
        """
        by = window.size - self.size
        start = window.size - len(self.tail)
        if start < self.at:
            return None
        raw = window.read_at(start, len(self.tail))
        tail = np.frombuffer(bytearray(raw), np.uint8)
        if not self.shifted.are_in(tail, by):
            return None
        tail[self.free] = 0
        if not np.array_equal(tail, self.tail):
            return None
        if window.read_at(0, len(self.first)) != self.first:
            return None
        if any(window.read_at(at + by, len(header)) != header for at, header in self.headers):
            return None
        at, after = self.places
        (stored, size, again), (header,) = _u32s(raw, at + _CRC, 3), _u32s(raw, after + _HEADER, 1)
        if size != again or header != self.at + size + self.following.gap:
            return None
        if not self.following.is_at(window, header, by):
            return None
        pickle = window.read_at(self.at, size)
        # As `ZipIndex.read` does; 0 stands where torch was told not to compute it.
        return pickle if stored in (0, crc32(pickle)) else None


@dataclass(frozen=True, slots=True)
class Positions:
    """Where a directory says that headers are, in four bytes or in eight, and what it says."""

    narrow: Indices
    wide: Indices
    values: tuple[Values, Values]

    def are_in(self, tail: Bytes, by: int) -> bool:
        """Whether another directory says the same, but for a shift of all."""
        narrow, wide = _values(tail, self.narrow, "<u4"), _values(tail, self.wide, "<u8")
        # All ones say that the position is elsewhere.
        beyond = bool(len(narrow)) and int(narrow.max()) == _32
        return not beyond and all(
            np.array_equal(here, there + by) for here, there in zip((narrow, wide), self.values, strict=True)
        )


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

    def is_at(self, window: Window, at: int, by: int) -> bool:
        """Tell whether a file has the same entry, its header at ``at``, its data ``by`` bytes further on."""
        wide, begin = at + _LOCAL.size + len(self.name), self.begin + by
        if wide > begin:
            return False
        raw = window.read_at(at, begin + len(self.data) - at)
        extra = int.from_bytes(raw[_FIXED : _LOCAL.size], "little")
        same = raw[:_FIXED] == self.header and raw[_LOCAL.size : wide - at] == self.name
        return same and wide + extra == begin and raw.endswith(self.data)


def outline(window: Window) -> Outline | None:
    """Read the outline of a zip archive of torch that is known to be sound.

    None if others are not to be compared with it: it does not begin with its pickle, as torch's do, or has
    gaps between its entries.
    """
    index = ZipIndex(window)
    entries = sorted(index.positions.items(), key=lambda entry: entry[1])
    order = [name for name, _ in entries]
    if window.start or len(order) < 2 or [n for n in order if n.endswith(_PICKLE)] != order[:1]:
        return None
    ends = [at for _, at in entries[1:]] + [index.start]
    headers = []
    begin = size = 0
    following: Following | None = None
    for i, ((name, at), end) in enumerate(zip(entries, ends, strict=True)):
        try:
            data, length = index.locate(name)
        except FormatError:  # of an entry that opening does not read
            return None
        if end - data - length not in _DESCRIPTORS:
            return None
        shown = length if name.endswith(_ORDER) else 0
        if i == 0:
            first, begin, size = window.read_at(at, data - at), data, length
        elif i == 1:
            head = window.read_at(at, _FIXED)
            following = Following(at - begin - size, head, name.encode(), data, window.read_at(data, shown))
        elif i == len(entries) - 1 or shown:
            # What the extra field pads, or says again of the position, does not count.
            headers.append((at, window.read_at(at, _LOCAL.size + len(name.encode()))))
            headers += [(data, window.read_at(data, shown))] * bool(shown)
    if entries[0][1] or following is None:
        return None
    tail = np.frombuffer(bytearray(window.read_at(index.start, window.size - index.start)), np.uint8)
    places = _entries(tail.tobytes(), len(index.sizes))
    if places is None or places[order[1]].width != 4 or tail[-_END.size :][:4].tobytes() != b"PK\5\6":
        return None
    moved = [(places[name].header, places[name].width) for name in order[2:]]
    moved += _ends(tail.tobytes(), max(place.end for place in places.values()))
    narrow, wide = (np.array([at for at, w in moved if w == width], np.intp) for width in (4, 8))
    pair = (places[order[0]].at, places[order[1]].at)
    free = [p.at + _CRC + i for n, p in places.items() if not n.endswith(_ORDER) for i in range(4)]
    free += [pair[0] + _SIZES + i for i in range(8)] + [pair[1] + _HEADER + i for i in range(4)]
    free += [at + i for at, width in moved for i in range(width)]
    shifted = Positions(narrow, wide, (_values(tail, narrow, "<u4"), _values(tail, wide, "<u8")))
    zeroed = np.array(free, np.intp)
    tail[zeroed] = 0
    return Outline(window.size, tail, zeroed, shifted, pair, tuple(headers), first, following, begin)


class _Place(NamedTuple):
    """Where an entry is in the directory, where it ends, and where and how long the header's position is."""

    at: int
    end: int
    header: int
    width: int


def _entries(tail: bytes, count: int) -> dict[str, _Place] | None:
    """Return where each entry is in the directory; None if one is of an unusual form."""
    found: dict[str, _Place] = {}
    at = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(tail, at)
        if fields[0] != b"PK\1\2":
            return None
        begin = at + _CENTRAL.size + fields[10]
        end = begin + fields[11] + fields[12]
        name = tail[at + _CENTRAL.size : begin].decode()
        if fields[16] != _32:
            found[name] = _Place(at, end, at + _HEADER, 4)
        else:  # behind the lengths that are all ones, in the extra field of zip64
            extra = tail[begin : begin + fields[11]]
            ahead = 4 + 8 * (fields[8:10].count(_32))
            if extra[:2] != b"\1\0" or len(extra) < ahead + 8:
                return None
            found[name] = _Place(at, end, begin + ahead, 8)
        at = end
    return found


def _ends(tail: bytes, end: int) -> list[tuple[int, int]]:
    """Return where what follows the directory says where that is, and in how many bytes.

    Args:
        tail: The directory and what follows.
        end: Where it ends.
    """
    last = len(tail) - _END.size
    (start,) = _u32s(tail, last + 16, 1)
    found = [] if start == _32 else [(last + 16, 4)]
    if tail[end : end + 4] == b"PK\6\6":  # zip64: its own end, and 20 bytes before the other where that is
        found += [(end + 48, 8), (last - 12, 8)]
    return found


def _values(tail: Bytes, at: Indices, form: str) -> Values:
    """Return the numbers that begin at these places."""
    kind = np.dtype(form)
    numbers: Values = tail[at[:, None] + np.arange(kind.itemsize)].view(kind)[:, 0].astype(np.int64)
    return numbers


@dataclass(frozen=True, slots=True)
class Text:
    """Hold a pickle but for its numbers that may differ.

    Attributes:
        head: What is before the first of them.
        rest: Of each the name, and what is after it; the random state has none.
    """

    head: bytes
    rest: tuple[tuple[str, bytes], ...]

    def numbers_of(self, pickle: bytes) -> dict[str, int] | None:
        """Return the numbers of another pickle by name if all else is as in this one, else None."""
        if not pickle.startswith(self.head):
            return None
        found: dict[str, int] = {}
        at = len(self.head)
        for name, piece in self.rest:
            number = (_NUMBER if name else _NUMBERS).match(pickle, at)
            if number is None or not pickle.startswith(piece, number.end()):
                return None
            if name:
                found[name] = _value(number)
            at = number.end() + len(piece)
        return found if at == len(pickle) else None

    def with_numbers(self, pickle: bytes, changed: Mapping[str, tuple[int, int]]) -> Text | None:
        """Find the numbers in which another pickle differs, of which it was not known that they may.

        Args:
            pickle: The other.
            changed: The values, by name, that are known to differ: in this one and in the other.

        Returns:
            This one without those numbers; None if the pickles differ in anything else, or it does not show
            which number is which.
        """
        left = dict(changed)
        at = 0
        parts: list[tuple[str, bytes]] = []
        places: list[int] = []
        for name, piece in (("", self.head), *self.rest):
            if piece is not self.head:
                number = (_NUMBER if name else _NUMBERS).match(pickle, at)
                if number is None:
                    return None
                at = number.end()
            while not pickle.startswith(piece, at):
                split = _first_apart(piece, pickle, at, left)
                if split is None:
                    return None
                mine, other, found = split
                parts.append((name, piece[: mine.start()]))
                places.append(other.start())
                name, piece, at = found, piece[mine.end() :], other.end()
            parts.append((name, piece))
            at += len(piece)
        whole = at == len(pickle) and not left and inert.begin_at(pickle, places)
        return Text(parts[0][1], tuple(parts[1:])) if whole else None


def text_of(pickle: bytes) -> Text:
    """Return a pickle but for the numbers of its random state, if nothing else is made of them."""
    begin, end = _numbers(pickle)
    return Text(pickle[:begin], (("", pickle[end:]),)) if end else Text(pickle, ())


def _numbers(pickle: bytes) -> tuple[int, int]:
    """Find the numbers of Python's random state, if they are stored once and nothing is made of them."""
    state = _STATE.search(pickle)
    found = _NUMBERS.match(pickle, state.end()) if state is not None else None
    if found is None or _REST.match(pickle, found.end()) is None:
        return 0, 0
    return found.span() if inert.used_once(pickle, *found.span()) else (0, 0)


def _first_apart(
    piece: bytes, pickle: bytes, at: int, left: dict[str, tuple[int, int]]
) -> tuple[re.Match[bytes], re.Match[bytes], str] | None:
    """Find the number that makes a pickle differ first from a piece of another.

    Args:
        piece: The piece.
        pickle: The pickle.
        at: Where in it what should be like the piece begins.
        left: The numbers that may differ, by name: what they are in both. The one found is taken out.
    """
    length = min(len(piece), len(pickle) - at)
    one, two = (np.frombuffer(data, np.uint8, length, i) for data, i in ((piece, 0), (pickle, at)))
    apart = np.flatnonzero(one != two)
    if not len(apart):
        return None
    first = int(apart[0])
    for i in range(max(0, first - _LONGEST + 1), first + 1):
        mine, other = _VALUE.match(piece, i), _VALUE.match(pickle, at + i)
        if mine is None or other is None or mine.end() <= first:
            continue
        names = [name for name, values in left.items() if values == (_value(mine), _value(other))]
        if len(names) > 1:  # told apart by the key before
            names = [n for n in names if re.search(re.escape(n.encode()) + _STORED, piece[:i])]
        if len(names) == 1:
            del left[names[0]]
            return mine, other, names[0]
    return None


def _value(number: re.Match[bytes]) -> int:
    """Return the operand of an opcode for whole numbers; only those of four bytes have a sign."""
    digits = number[0][1:]
    return int.from_bytes(digits, "little", signed=len(digits) == 4)


def _u32s(raw: bytes, at: int, count: int) -> tuple[int, ...]:
    return tuple([_U32.unpack_from(raw, at + 4 * i)[0] for i in range(count)])
