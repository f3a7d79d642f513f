"""Read pickles without running them: every class, function and call becomes an inert value.

A machine of our own steps through protocols 0 to 5. It imports nothing and calls nothing that a pickle
names: a global becomes a :class:`Global`, a call a :class:`Record`, save for a few containers built here
(dict, list, tuple, set, bytes, ``torch.Size``) and the hooks a caller gives. It does not recurse, time
and memory are proportional to the input, and shared values stay shared: whoever walks a result must expect
cycles and the same value many times.

Cost: about 2 million opcodes a second; a tensor in a state dict takes some 40 opcodes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Final, Protocol

from ckptconv.containers.torch.pickleops import NAMES, TABLE
from ckptconv.containers.torch.picklevm import (
    Global,
    Hook,
    Limits,
    Machine,
    Record,
    Truncated,
    hollow_bytes,
    is_hollow,
)  # fmt: skip
from ckptconv.errors import FormatError

__all__ = ["Global", "Hook", "Limits", "Record", "load", "load_at", "used_once"]

_CHUNK: Final = 1 << 16
# Picklers fill a container by the thousand; only the elements of a tuple wait for its end.
_STRIDE: Final = 1 << 20
_MOST_PENDING: Final = 1 << 22
_DEFAULT: Final = Limits()
_RECALLS: Final = b"hjg2"  # GET in its three forms, and DUP
_TUPLE3: Final = 0x87
# What opcodes raise, see `_step`.
_UNREADABLE: Final = (
    FormatError, Truncated, LookupError, TypeError, ValueError, OverflowError, RecursionError, struct.error,
)  # fmt: skip

Persistent = Callable[[object], object]
Where = str | PathLike[str] | None


class Readable(Protocol):
    """What :func:`load_at` needs of a file."""

    def seek(self, offset: int, /) -> int: ...
    def read(self, length: int, /) -> bytes: ...


def load(
    data: bytes,
    *,
    persistent: Persistent | None = None,
    hooks: Mapping[str, Hook] | None = None,
    limits: Limits = _DEFAULT,
    where: Where = None,
    exact: bool = False,
) -> object:
    """Read one pickle from ``data``; bytes after its end are ignored.

    Args:
        data: The pickle.
        persistent: Called with each persistent id; its result stands for the object.
        hooks: By dotted name, what to make of a call; each is given the arguments.
        limits: Bounds on what the pickle may cost.
        where: The file to name in errors.
        exact: Whether the result is to be written again: an OrderedDict stays one, with its attributes, so
            does a defaultdict (of a plain type, else a record), ``torch.Size`` is a record, and what cannot
            be kept is refused. By default both dicts become dicts, ``torch.Size`` a tuple.

    Raises:
        FormatError: if the pickle is damaged or hostile, with the position of the opcode.
    """
    if len(data) > limits.size:
        raise FormatError(f"a pickle of {len(data):,} bytes; the limit is {limits.size:,}", where=where)
    machine = Machine(data, persistent, hooks, limits, exact)
    _run(machine, lambda rest: b"", 0, where)
    return machine.result


def load_at(
    file: Readable,
    offset: int,
    *,
    persistent: Persistent | None = None,
    hooks: Mapping[str, Hook] | None = None,
    limits: Limits = _DEFAULT,
    where: Where = None,
    exact: bool = False,
) -> tuple[object, int]:
    """Read the pickle at ``offset`` of a file, no further than needed; return it and where it ends.

    Raises:
        FormatError: as for :func:`load`, positions counted from the start of the file.
    """
    file.seek(offset)
    left = limits.size

    def more(rest: int) -> bytes:
        nonlocal left
        chunk = file.read(min(max(_CHUNK, rest), left + 1))
        left -= len(chunk)
        if left < 0:
            raise FormatError(f"a pickle of more than {limits.size:,} bytes", where=where)
        return chunk

    machine = Machine(b"", persistent, hooks, limits, exact)
    end = _run(machine, more, offset, where)
    return machine.result, end


def used_once(data: bytes, begin: int, end: int) -> bool:
    """Tell whether a tuple is made by its own opcodes, and neither it nor the triple around it is recalled.

    Args:
        data: A pickle that `load` read. One that cannot be read without what `load` was given is not known to
            use the tuple once.
        begin: Where the first opcode of its elements would begin.
        end: Where the TUPLE that ends them would be; the next TUPLE3 makes the triple.
    """
    m = Machine(data, lambda pid: Record("storage"), None, _DEFAULT)
    boundaries = 0
    made: list[object] = []
    pos = 0
    try:
        while pos >= 0:
            at = pos
            pos = TABLE[data[at]](m, at + 1)
            boundaries += at in (begin, end)
            if at == end or (len(made) == 1 and data[at] == _TUPLE3):
                made.append(m.stack[-1])
            elif made and data[at] in _RECALLS and any(m.stack[-1] is one for one in made):
                return False
    except _UNREADABLE:
        return False
    return boundaries == 2 and bool(made) and type(made[0]) is tuple


def begin_at(data: bytes, places: Iterable[int]) -> bool:
    """Tell whether opcodes begin at these bytes.

    Args:
        data: A pickle that `load` read; see `used_once`.
        places: Positions.
    """
    m = Machine(data, lambda pid: Record("storage"), None, _DEFAULT)
    pos = 0
    try:
        for place in sorted(places):
            while 0 <= pos < place:
                pos = TABLE[data[pos]](m, pos + 1)
            if pos != place:
                return False
    except _UNREADABLE:
        return False
    return True


def _run(m: Machine, more: Callable[[int], bytes], base: int, where: Where) -> int:
    """Step to STOP and return its end; ``base`` is the file position of ``m.data``."""
    pos = 0
    read = m.size
    hollow = hollow_bytes(m.data)
    while True:
        try:
            _check_content(m, read, hollow, where)
            pos = _step(m, pos, pos + _STRIDE)
        except _AtEnd as cut:
            pos = cut.pos
            chunk = more(m.size - pos)
            if not chunk:
                raise FormatError(
                    f"the pickle ends early, at byte {base + m.size:,}",
                    where=where,
                    hint="copy the file again",
                ) from None
            m.data = m.data[pos:] + chunk
            m.budget += m.limits.allows(read + len(chunk)) - m.limits.allows(read)
            read += len(chunk)
            hollow += hollow_bytes(chunk)
            m.size = len(m.data)
            base += pos
            pos = 0
        except _AtOpcode as error:
            name = NAMES.get(m.data[error.pos], "an unknown opcode")
            raise FormatError(
                f"{error.message} ({name} at byte {base + error.pos:,} of the pickle)",
                where=error.where or where,
                hint="copy the file again; if that does not help, it is damaged or was made to do harm",
            ) from error.__cause__
        else:
            if pos < 0:
                return base + m.end


def _check_content(m: Machine, read: int, hollow: int, where: Where) -> None:
    pending = len(m.stack) + (sum(map(len, m.meta)) if len(m.meta) < _MOST_PENDING else _MOST_PENDING)
    if pending > _MOST_PENDING or is_hollow(hollow, read):
        raise FormatError(
            "a pickle of little but empty values",
            where=where,
            hint="copy the file again; if that does not help, it is damaged or was made to do harm",
        )


class _AtEnd(Exception):
    def __init__(self, pos: int) -> None:
        self.pos = pos


class _AtOpcode(Exception):
    def __init__(self, message: str, pos: int, where: str | None = None) -> None:
        self.message = message
        self.pos = pos
        self.where = where


def _step(m: Machine, pos: int, until: int) -> int:
    """Run opcodes from ``pos`` to STOP, which gives -1, or to where they are looked at again."""
    data = m.data
    table = TABLE
    start = pos
    try:
        while 0 <= pos < until:
            start = pos
            pos = table[data[pos]](m, pos + 1)
    except (Truncated, struct.error):
        raise _AtEnd(start) from None
    except IndexError:
        # An argument of one byte, or the opcode itself, beyond the end looks like an empty stack.
        if start + 2 > len(data):
            raise _AtEnd(start) from None
        raise _AtOpcode("the pickle takes from an empty stack", start) from None
    except FormatError as error:
        raise _AtOpcode(error.message, start, error.where) from error
    except KeyError:
        raise _AtOpcode("the pickle recalls what it never stored", start) from None
    except UnicodeError as error:
        raise _AtOpcode(f"text that cannot be decoded: {error.reason}", start) from error  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _AtOpcode(f"damaged pickle: {str(error)[:200]}", start) from error
    return pos
