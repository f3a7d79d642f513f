"""Walk protobuf messages by position; long fields are located, never read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple, NoReturn

from ckptconv.errors import FormatError
from ckptconv.places.window import Window

__all__ = ["Field", "Walker", "signed"]

_BUFFER: Final = 4096
_VARINT: Final = 10  # bytes at most


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: Its number.
        value: The integer of a varint field (unsigned, 64 bits), ``None`` for a field that has a length.
        start: Where its bytes begin in the file; for a varint where the field ends.
        size: How many bytes it has; 0 for a varint.
    """

    number: int
    value: int | None
    start: int
    size: int


class Walker:
    """Read fields at any position of an open file, through a small buffer.

    Attributes:
        path: The file's name, for errors.
        size: Its length in bytes.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._window = Window(file, path)
        self._buffer = b""
        self._start = 0
        self.path = path
        self.size = self._window.size

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message that lies between two positions.

        Raises:
            FormatError: if a field reaches beyond ``end``, or has a wire type other than varint and length.
        """
        at = start
        while at < end:
            begin = at
            key, at = self._varint(at, end)
            value, at = self._varint(at, end)
            if key & 7 == 0:
                yield Field(key >> 3, value, at, 0)
            elif key & 7 == 2:
                if value > end - at:
                    self.fail(f"a field of {value:,} bytes at byte {at:,} reaches beyond byte {end:,}")
                yield Field(key >> 3, None, at, value)
                at += value
            else:
                self.fail(f"byte {begin:,} starts no field (wire type {key & 7})")

    def bytes(self, field: Field, limit: int) -> bytes:
        """Return the bytes of a short field.

        Raises:
            FormatError: if it has more than ``limit`` of them, or is a number.
        """
        if field.value is not None or field.size > limit:
            self.fail(f"a text of at most {limit:,} bytes was expected at byte {field.start:,}")
        return self._window.read_at(field.start, field.size)

    def text(self, field: Field, limit: int = 1 << 16) -> str:
        """Return the text of a field (UTF-8)."""
        try:
            return self.bytes(field, limit).decode()
        except UnicodeDecodeError:
            self.fail(f"the name at byte {field.start:,} is not UTF-8")

    def integers(self, field: Field, limit: int = 1 << 16) -> list[int]:
        """Return the integer of a field, or all of a packed one (unsigned, 64 bits each)."""
        if field.value is not None:
            return [field.value]
        found, at, end = [], field.start, field.start + field.size
        if field.size > limit:
            self.fail(f"too many numbers at byte {at:,}")
        while at < end:
            value, at = self._varint(at, end)
            found.append(value)
        return found

    def fail(self, message: str) -> NoReturn:
        raise self._error(message)

    def _error(self, message: str) -> FormatError:
        return FormatError(message, where=self.path, hint="the file is cut off or damaged; copy it again")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return the number at a position, and the position after it."""
        i = at - self._start
        if not 0 <= i <= len(self._buffer) - _VARINT:
            self._window.seek(at)
            self._buffer, self._start, i = self._window.read(_BUFFER), at, 0
        value = 0
        for n, byte in enumerate(self._buffer[i : i + min(_VARINT, end - at)]):
            value |= (byte & 0x7F) << 7 * n
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at + n + 1
        raise self._error(f"no number ends between byte {at:,} and byte {min(at + _VARINT, end):,}")


def signed(value: int) -> int:
    """Read a varint as the two's complement of 64 bits (protobuf ``int32`` and ``int64``)."""
    return value - (1 << 64) if value >> 63 else value
