"""Find where the entries of a stored (uncompressed) zip archive lie, strictly and without reading them.

Written for archives of torch (miniz) and of Python's ``zipfile``, from PKWARE's APPNOTE 6.3.10. What two
readers could see differently is refused: overlaps, trailing bytes, sizes that disagree, duplicate names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, NoReturn

from isal.isal_zlib import crc32

from ckptconv.containers.torch.picklevm import short
from ckptconv.errors import FormatError
from ckptconv.places.window import Window

__all__ = ["ZipIndex"]

_END = Struct("<4s4H2LH")
_LOCATOR = Struct("<4sLQL")
_END64 = Struct("<4sQ2H2L4Q")
_CENTRAL = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")
_MAX_COMMENT: Final = 0xFFFF
_MAX_DIRECTORY: Final = 1 << 28
_16: Final = 0xFFFF
_32: Final = 0xFFFFFFFF
_ENCRYPTED: Final = 0x2041  # encrypted, strongly encrypted, central directory encrypted
_DESCRIPTOR: Final = 0x08


class ZipIndex:
    """List the entries of an archive and locate their data.

    Only the directory is read at once; an entry's local header is read when the entry is located.

    Attributes:
        sizes: Length of each entry's data.
        positions: Where each entry's header is.
        start: Where the directory begins.

    Raises:
        FormatError: if the archive is damaged, or not plainly stored.
    """

    __slots__ = ("_crc", "_limit", "_window", "positions", "sizes", "start")

    def __init__(self, window: Window) -> None:
        self._window = window
        self.sizes: dict[str, int] = {}
        self.positions: dict[str, int] = {}
        self._limit: dict[str, int] = {}
        self._crc: dict[str, int] = {}
        start, data, count = self._directory()
        self.start = start
        ends: list[tuple[int, str, int]] = []
        for name, size, at, crc in self._entries(data, count):
            if name in self.sizes:
                self._fail(f"the archive holds {short(name)} twice")
            self.sizes[name] = size
            self.positions[name] = at
            self._crc[name] = crc
            ends.append((at, name, at + _LOCAL.size + len(name.encode()) + size))
        ends.sort()
        following = [at for at, _, _ in ends[1:]] + [start]
        for (_, name, end), limit in zip(ends, following, strict=True):
            if end > limit:
                self._fail(f"the entry {short(name)} overlaps what follows it")
            self._limit[name] = limit

    def locate(self, name: str) -> tuple[int, int]:
        """Return the position in the window, and the length, of an entry's data.

        Raises:
            FormatError: if its local header disagrees with the directory.
        """
        at, size = self.positions[name], self.sizes[name]
        raw = name.encode()
        head = self._window.read_at(at, _LOCAL.size + len(raw))
        sig, _, flags, method, _, _, _, packed, plain, n_name, n_extra = _LOCAL.unpack_from(head)
        if sig != b"PK\3\4" or head[_LOCAL.size :] != raw or n_name != len(raw):
            self._fail(f"no local header for the entry {short(name)} at byte {at:,}")
        if flags & _ENCRYPTED or method:
            self._fail(f"the entry {short(name)} is compressed or encrypted in its local header")
        if not flags & _DESCRIPTOR and {packed, plain} - {size, _32}:
            self._fail(f"two lengths are given for the entry {short(name)}: {size:,} and {plain:,}")
        begin = at + len(head) + n_extra
        if begin + size > self._limit[name]:
            self._fail(f"the entry {short(name)} overlaps what follows it")
        return begin, size

    def expect(self, names: Iterable[str]) -> None:
        """Say which entries are located next."""
        places = [(at := self.positions[n], at + _LOCAL.size + len(n.encode())) for n in names]
        self._window.expect(places)

    def read(self, name: str, limit: int) -> bytes:
        """Return an entry's data, which must not be longer than ``limit``.

        Its checksum is compared, unless it is 0: torch writes that where it is told not to compute any
        (torch 2.13, ``serialization.set_crc32_options``).
        """
        if self.sizes[name] > limit:
            self._fail(f"the entry {short(name)} has {self.sizes[name]:,} bytes; the limit is {limit:,}")
        data = self._window.read_at(*self.locate(name))
        if self._crc[name] not in (0, crc32(data)):
            self._fail(f"the entry {short(name)} is damaged: its CRC-32 is not the one stored with it")
        return data

    def _fail(self, message: str) -> NoReturn:
        raise FormatError(message, where=self._window.path, hint="copy the file again, or save it anew")

    def _directory(self) -> tuple[int, bytes, int]:
        """Return the position, the bytes and the number of entries of the central directory."""
        window = self._window
        tail_at = max(0, window.size - _END.size - _MAX_COMMENT)
        tail = window.read_at(tail_at, window.size - tail_at)
        at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
        if at < 0:
            self._fail("the archive has no directory at its end; it was cut off")
        _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, at)
        end = tail_at + at
        if end + _END.size + comment != window.size:
            self._fail("there are bytes after the end of the archive")
        if (
            end >= _LOCATOR.size
            and (loc := window.read_at(end - _LOCATOR.size, _LOCATOR.size))[:4] == b"PK\6\7"
        ):
            _, disk64, end64, disks = _LOCATOR.unpack(loc)
            record = window.read_at(end64, _END64.size)
            sig, _, _, _, disk_a, disk_b, here64, count64, size64, start64 = _END64.unpack(record)
            old_new = ((here, here64, _16), (count, count64, _16), (size, size64, _32), (start, start64, _32))
            if sig != b"PK\6\6" or any(a not in (b, mark) for a, b, mark in old_new):
                self._fail("the two ends of the archive disagree")
            if disk64 or disks > 1 or disk_a or disk_b:
                self._fail("the archive is split over several files")
            here, count, size, start, end = here64, count64, size64, start64, end64
        if disk or first_disk or here != count:
            self._fail("the archive is split over several files")
        if start + size != end or size > _MAX_DIRECTORY or count * _CENTRAL.size > size:
            self._fail("the archive's directory is not where its end says")
        return start, window.read_at(start, size), count

    def _entries(self, data: bytes, count: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield name, length, header position and checksum of each entry."""
        at = 0
        for _ in range(count):
            if at + _CENTRAL.size > len(data) or data[at : at + 4] != b"PK\1\2":
                self._fail("the archive's directory is damaged")
            fields = _CENTRAL.unpack_from(data, at)
            flags, method = fields[3:5]
            packed, plain, n_name, n_extra, n_comment, disk = fields[8:14]
            begin = at + _CENTRAL.size
            at = begin + n_name + n_extra + n_comment
            name = self._name(data[begin : begin + n_name])
            if at > len(data) or disk:
                self._fail("the archive's directory is damaged")
            if flags & _ENCRYPTED:
                self._fail(f"the entry {short(name)} is encrypted")
            if method:
                self._fail(f"the entry {short(name)} is compressed (method {method}); torch stores plainly")
            extra = data[begin + n_name : begin + n_name + n_extra]
            plain, packed, where = self._wide(name, extra, plain, packed, fields[16])
            if plain != packed:
                self._fail(f"two lengths are given for the entry {short(name)}: {plain:,} and {packed:,}")
            yield name, plain, where, fields[7]
        if at != len(data):
            self._fail("the archive's directory is damaged")

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self._fail("an entry's name is not UTF-8")
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            self._fail(f"an entry's name leaves the archive: {short(name)}")
        return name

    def _wide(self, name: str, extra: bytes, *values: int) -> list[int]:
        """Replace the values that are all ones by those of the zip64 field, in its order."""
        wide = list(values)
        if _32 not in wide:
            return wide
        at = 0
        while at + 4 <= len(extra):
            kind = int.from_bytes(extra[at : at + 2], "little")
            end = at + 4 + int.from_bytes(extra[at + 2 : at + 4], "little")
            if kind == 1:
                at += 4
                for i, value in enumerate(wide):
                    if value == _32 and at + 8 <= min(end, len(extra)):
                        wide[i] = int.from_bytes(extra[at : at + 8], "little")
                        at += 8
                break
            at = end
        return wide
