"""Give every pickle opcode of protocols 0 to 5 its inert meaning, as one table indexed by the byte.

A handler takes the machine and the position after the opcode, and returns the position of the next
opcode. It reads its argument before it changes anything, so that an instruction cut by the end of a
buffer can be run again once more data is there. The opcodes: CPython 3.14, ``Lib/pickletools.py``.
"""

from __future__ import annotations

import codecs
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from struct import Struct
from types import MappingProxyType
from typing import Final

from ckptconv.containers.torch.picklevm import ENTRY, LIST, WORD, Global, Machine, Record, Truncated, short
from ckptconv.errors import FormatError

__all__ = ["NAMES", "TABLE", "Handler"]

Handler = Callable[[Machine, int], int]

HIGHEST_PROTOCOL: Final = 5
# What objects weigh, in bytes, see `picklevm`. A container's first element makes room for some more.
_DICT: Final = 72
_SET: Final = 232
_FIRST_ITEMS: Final = 40
_FIRST: Final = 5  # entries that come with the first
_FIRST_ENTRIES: Final = 160
_TUPLE: Final = 56
_TEXT: Final = 56
_NAME: Final = 192
_DICTS: Final = (dict, OrderedDict, defaultdict, MappingProxyType)  # the last one of a record without entries
_FOUND: Final = 256  # what a persistent id stands for
NAMES: Final[dict[int, str]] = {}


def _bad(m: Machine, pos: int) -> int:
    raise FormatError(f"0x{m.data[pos - 1]:02x} is not a pickle opcode")


TABLE: Final[list[Handler]] = [_bad] * 256


def _op(code: bytes, name: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        TABLE[code[0]] = handler
        NAMES[code[0]] = name
        return handler

    return register


_u16 = Struct("<H").unpack_from
_i32 = Struct("<i").unpack_from
_u32 = Struct("<I").unpack_from
_u64 = Struct("<Q").unpack_from
_f64 = Struct(">d").unpack_from


def _line(m: Machine, pos: int) -> tuple[bytes, int]:
    end = m.data.find(b"\n", pos)
    if end < 0:
        raise Truncated
    return m.data[pos:end], end + 1


def _take(m: Machine, pos: int, length: int) -> int:
    """Return the end of ``length`` bytes at ``pos``."""
    if length > m.limits.size:
        raise FormatError(f"a string of {length:,} bytes; the limit is {m.limits.size:,}")
    if pos + length > m.size:
        raise Truncated
    return pos + length


# Control


@_op(b"\x80", "PROTO")
def _proto(m: Machine, pos: int) -> int:
    if m.data[pos] > HIGHEST_PROTOCOL:
        raise FormatError(f"pickle protocol {m.data[pos]}; up to {HIGHEST_PROTOCOL} can be read")
    return pos + 1


@_op(b"\x95", "FRAME")
def _frame(m: Machine, pos: int) -> int:
    _u64(m.data, pos)
    return pos + 8


@_op(b".", "STOP")
def _stop(m: Machine, pos: int) -> int:
    m.result = m.stack.pop()
    m.end = pos
    return -1


@_op(b"(", "MARK")
def _mark(m: Machine, pos: int) -> int:
    m.charge(LIST)
    m.meta.append(m.stack)
    m.stack = []
    return pos


def _check_dropped(m: Machine, values: list[object]) -> None:
    """Refuse, where all is to be kept, calls made for what they do (``state_setter`` of ``__reduce__``)."""
    if m.exact and any(type(v) is Record for v in values):
        raise FormatError("a call whose result is not used")


@_op(b"0", "POP")
def _pop(m: Machine, pos: int) -> int:
    _check_dropped(m, [m.stack.pop()] if m.stack else m.pop_mark())
    return pos


@_op(b"1", "POP_MARK")
def _pop_mark(m: Machine, pos: int) -> int:
    _check_dropped(m, m.pop_mark())
    return pos


@_op(b"2", "DUP")
def _dup(m: Machine, pos: int) -> int:
    m.stack.append(m.stack[-1])
    return pos


# Memo


@_op(b"q", "BINPUT")
def _binput(m: Machine, pos: int) -> int:
    m.store(m.data[pos], m.stack[-1])
    return pos + 1


@_op(b"r", "LONG_BINPUT")
def _long_binput(m: Machine, pos: int) -> int:
    index = _u32(m.data, pos)[0]
    if index == len(m.memo) and not m.far:
        m.memo.append(m.stack[-1])
    else:
        m.store(index, m.stack[-1])
    return pos + 4


@_op(b"\x94", "MEMOIZE")
def _memoize(m: Machine, pos: int) -> int:
    m.budget -= WORD  # checked where objects are made
    if m.far:
        m.store(len(m.memo) + len(m.far), m.stack[-1])
    else:
        m.memo.append(m.stack[-1])
    return pos


@_op(b"p", "PUT")
def _put(m: Machine, pos: int) -> int:
    text, end = _line(m, pos)
    index = _int_of(m, text)
    m.check_keys((index,), len(m.far))
    m.store(index, m.stack[-1])
    m.charge(WORD)
    return end


@_op(b"h", "BINGET")
def _binget(m: Machine, pos: int) -> int:
    m.stack.append(m.recall(m.data[pos]))
    return pos + 1


@_op(b"j", "LONG_BINGET")
def _long_binget(m: Machine, pos: int) -> int:
    m.stack.append(m.recall(_u32(m.data, pos)[0]))
    return pos + 4


@_op(b"g", "GET")
def _get(m: Machine, pos: int) -> int:
    text, end = _line(m, pos)
    m.stack.append(m.recall(_int_of(m, text)))
    return end


# Constants and numbers


def _constant(code: bytes, name: str, value: object) -> None:
    def push(m: Machine, pos: int) -> int:
        m.stack.append(value)
        return pos

    _op(code, name)(push)


_constant(b"N", "NONE", None)
_constant(b"\x88", "NEWTRUE", True)
_constant(b"\x89", "NEWFALSE", False)
_constant(b")", "EMPTY_TUPLE", ())


def _int_of(m: Machine, text: bytes) -> int:
    if len(text) > m.limits.integer:
        raise FormatError(f"an integer of {len(text):,} digits")
    return int(text)


@_op(b"K", "BININT1")
def _binint1(m: Machine, pos: int) -> int:
    m.stack.append(m.data[pos])
    return pos + 1


@_op(b"M", "BININT2")
def _binint2(m: Machine, pos: int) -> int:
    m.stack.append(_u16(m.data, pos)[0])
    return pos + 2


@_op(b"J", "BININT")
def _binint(m: Machine, pos: int) -> int:
    m.stack.append(_i32(m.data, pos)[0])
    return pos + 4


@_op(b"I", "INT")
def _int(m: Machine, pos: int) -> int:
    text, end = _line(m, pos)
    m.stack.append(text == b"01" if text in (b"00", b"01") else _int_of(m, text))
    return end


@_op(b"L", "LONG")
def _long(m: Machine, pos: int) -> int:
    text, end = _line(m, pos)
    m.stack.append(_int_of(m, text.removesuffix(b"L")))
    return end


def _push_long(m: Machine, pos: int, length: int) -> int:
    if not 0 <= length <= m.limits.integer:
        raise FormatError(f"an integer of {length:,} bytes; the limit is {m.limits.integer:,}")
    end = _take(m, pos, length)
    m.stack.append(int.from_bytes(m.data[pos:end], "little", signed=True))
    return end


@_op(b"\x8a", "LONG1")
def _long1(m: Machine, pos: int) -> int:
    return _push_long(m, pos + 1, m.data[pos])


@_op(b"\x8b", "LONG4")
def _long4(m: Machine, pos: int) -> int:
    return _push_long(m, pos + 4, _i32(m.data, pos)[0])


@_op(b"F", "FLOAT")
def _float(m: Machine, pos: int) -> int:
    text, end = _line(m, pos)
    m.stack.append(float(text))
    return end


@_op(b"G", "BINFLOAT")
def _binfloat(m: Machine, pos: int) -> int:
    m.stack.append(_f64(m.data, pos)[0])
    return pos + 8


# Strings and bytes


def _push_text(m: Machine, pos: int, length: int) -> int:
    end = _take(m, pos, length)
    text = m.data[pos:end].decode("utf-8", "surrogatepass")
    m.charge(_TEXT + (length if text.isascii() else 4 * len(text)))
    m.stack.append(text)
    return end


@_op(b"X", "BINUNICODE")
def _binunicode(m: Machine, pos: int) -> int:
    return _push_text(m, pos + 4, _u32(m.data, pos)[0])


@_op(b"\x8c", "SHORT_BINUNICODE")
def _short_binunicode(m: Machine, pos: int) -> int:
    return _push_text(m, pos + 1, m.data[pos])


@_op(b"\x8d", "BINUNICODE8")
def _binunicode8(m: Machine, pos: int) -> int:
    return _push_text(m, pos + 8, _u64(m.data, pos)[0])


@_op(b"V", "UNICODE")
def _unicode(m: Machine, pos: int) -> int:
    text, end = _line(m, pos)
    m.charge(_TEXT + 4 * len(text))
    m.stack.append(text.decode("raw-unicode-escape"))
    return end


def _push_bytes(m: Machine, pos: int, length: int) -> int:
    end = _take(m, pos, length)
    m.charge(_TEXT + length)
    m.stack.append(m.data[pos:end])
    return end


@_op(b"B", "BINBYTES")
def _binbytes(m: Machine, pos: int) -> int:
    return _push_bytes(m, pos + 4, _u32(m.data, pos)[0])


@_op(b"C", "SHORT_BINBYTES")
def _short_binbytes(m: Machine, pos: int) -> int:
    return _push_bytes(m, pos + 1, m.data[pos])


@_op(b"\x8e", "BINBYTES8")
def _binbytes8(m: Machine, pos: int) -> int:
    return _push_bytes(m, pos + 8, _u64(m.data, pos)[0])


@_op(b"\x96", "BYTEARRAY8")
def _bytearray8(m: Machine, pos: int) -> int:
    end = _take(m, pos + 8, _u64(m.data, pos)[0])
    m.charge(_TEXT + end - pos)
    m.stack.append(bytearray(m.data[pos + 8 : end]))
    return end


def _python2_str(m: Machine, raw: bytes) -> str | bytes:
    """Read a Python 2 ``str``: text where it is UTF-8, bytes where not."""
    m.charge(_TEXT + 4 * len(raw))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


@_op(b"S", "STRING")
def _string(m: Machine, pos: int) -> int:
    text, end = _line(m, pos)
    text = text.strip()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b'"', b"'"):
        raise FormatError("a string without quotes")
    raw, _ = codecs.escape_decode(text[1:-1])
    m.stack.append(_python2_str(m, raw))
    return end


@_op(b"T", "BINSTRING")
def _binstring(m: Machine, pos: int) -> int:
    length = _i32(m.data, pos)[0]
    if length < 0:
        raise FormatError("a string of negative length")
    end = _take(m, pos + 4, length)
    m.stack.append(_python2_str(m, m.data[pos + 4 : end]))
    return end


@_op(b"U", "SHORT_BINSTRING")
def _short_binstring(m: Machine, pos: int) -> int:
    end = _take(m, pos + 1, m.data[pos])
    m.stack.append(_python2_str(m, m.data[pos + 1 : end]))
    return end


# Containers


@_op(b"]", "EMPTY_LIST")
def _empty_list(m: Machine, pos: int) -> int:
    m.charge(LIST)
    m.stack.append([])
    return pos


@_op(b"}", "EMPTY_DICT")
def _empty_dict(m: Machine, pos: int) -> int:
    m.charge(_DICT)
    m.stack.append({})
    return pos


@_op(b"\x8f", "EMPTY_SET")
def _empty_set(m: Machine, pos: int) -> int:
    m.charge(_SET)
    m.stack.append(set())
    return pos


@_op(b"l", "LIST")
def _list(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    m.charge(LIST + WORD * len(items))
    m.stack.append(items)
    return pos


@_op(b"t", "TUPLE")
def _tuple(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    m.charge(_TUPLE + WORD * len(items))
    m.stack.append(tuple(items))
    return pos


@_op(b"\x85", "TUPLE1")
def _tuple1(m: Machine, pos: int) -> int:
    m.stack[-1] = (m.stack[-1],)
    m.charge(_TUPLE)
    return pos


@_op(b"\x86", "TUPLE2")
def _tuple2(m: Machine, pos: int) -> int:
    last = m.stack.pop()
    m.stack[-1] = (m.stack[-1], last)
    m.charge(_TUPLE)
    return pos


@_op(b"\x87", "TUPLE3")
def _tuple3(m: Machine, pos: int) -> int:
    last = m.stack.pop()
    middle = m.stack.pop()
    m.stack[-1] = (m.stack[-1], middle, last)
    m.charge(_TUPLE)
    return pos


@_op(b"d", "DICT")
def _dict(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    made: dict[object, object] = {}
    m.charge(_DICT)
    _set_pairs(m, made, items)
    m.stack.append(made)
    return pos


@_op(b"\x91", "FROZENSET")
def _frozenset(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    m.charge(_SET)
    m.charge(ENTRY * len(items))
    m.check_keys(items, len(items))
    m.stack.append(frozenset(items))
    return pos


def _set_pairs(m: Machine, target: object, items: list[object]) -> None:
    if len(items) % 2:
        raise FormatError("a key without a value")
    keys, values = items[::2], items[1::2]
    into = target.entries if type(target) is Record else target
    if type(into) not in _DICTS:
        raise FormatError(f"keys set on a {type(target).__name__}")
    held = len(into)  # type: ignore[arg-type]
    more = max(0, held + len(keys) - _FIRST) - max(0, held - _FIRST)
    m.charge(ENTRY * more + (0 if held else _FIRST_ENTRIES))
    m.check_keys(keys, held + len(keys))
    if type(target) is Record:
        target.set(zip(keys, values, strict=True))
    else:
        into.update(zip(keys, values, strict=True))  # type: ignore[attr-defined]


def _extend(m: Machine, target: object, items: list[object]) -> None:
    m.charge(WORD * len(items) + _FIRST_ITEMS)
    if type(target) is list:
        target.extend(items)
    elif type(target) is Record:
        target.append(items)
    else:
        raise FormatError(f"elements appended to a {type(target).__name__}")


@_op(b"s", "SETITEM")
def _setitem(m: Machine, pos: int) -> int:
    value = m.stack.pop()
    key = m.stack.pop()
    _set_pairs(m, m.stack[-1], [key, value])
    return pos


@_op(b"u", "SETITEMS")
def _setitems(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    _set_pairs(m, m.stack[-1], items)
    return pos


@_op(b"a", "APPEND")
def _append(m: Machine, pos: int) -> int:
    item = m.stack.pop()
    _extend(m, m.stack[-1], [item])
    return pos


@_op(b"e", "APPENDS")
def _appends(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    _extend(m, m.stack[-1], items)
    return pos


@_op(b"\x90", "ADDITEMS")
def _additems(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    target = m.stack[-1]
    m.charge(ENTRY * len(items))
    if type(target) is Record and not m.exact:
        target.append(items)
    elif type(target) is set:
        m.check_keys(items, len(target) + len(items))
        target.update(items)
    else:
        raise FormatError(f"elements added to a {type(target).__name__}")
    return pos


# Names, calls and state: nothing is looked up, nothing is called


@_op(b"c", "GLOBAL")
def _global(m: Machine, pos: int) -> int:
    module, middle = _line(m, pos)
    name, end = _line(m, middle)
    m.charge(_NAME + len(module) + len(name))
    m.stack.append(Global(module.decode(), name.decode()))
    return end


@_op(b"\x93", "STACK_GLOBAL")
def _stack_global(m: Machine, pos: int) -> int:
    name = m.stack.pop()
    module = m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise FormatError("a global whose name is not text")
    m.charge(_TUPLE)
    m.stack.append(Global(module, name))
    return pos


@_op(b"R", "REDUCE")
def _reduce(m: Machine, pos: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], args)
    return pos


@_op(b"\x81", "NEWOBJ")
def _newobj(m: Machine, pos: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], args, new=True)
    return pos


@_op(b"\x92", "NEWOBJ_EX")
def _newobj_ex(m: Machine, pos: int) -> int:
    kwargs = m.stack.pop()
    args = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], args, kwargs, new=True)
    return pos


@_op(b"o", "OBJ")
def _obj(m: Machine, pos: int) -> int:
    func, *args = m.pop_mark()
    m.stack.append(m.call(func, tuple(args), new=not args))
    return pos


@_op(b"i", "INST")
def _inst(m: Machine, pos: int) -> int:
    module, middle = _line(m, pos)
    name, end = _line(m, middle)
    args = tuple(m.pop_mark())
    m.charge(_NAME + len(module) + len(name))
    m.stack.append(m.call(Global(module.decode(), name.decode()), args, new=not args))
    return end


@_op(b"b", "BUILD")
def _build(m: Machine, pos: int) -> int:
    state = m.stack.pop()
    m.build(m.stack[-1], state)
    return pos


def _resolve(m: Machine, pid: object) -> None:
    if m.persistent is None:
        what = short(pid) if type(pid) is str else f"a {type(pid).__name__}"
        raise FormatError(f"a persistent id ({what}) outside a container that defines one")
    m.charge(_FOUND)
    m.stack.append(m.persistent(pid))


@_op(b"P", "PERSID")
def _persid(m: Machine, pos: int) -> int:
    text, end = _line(m, pos)
    _resolve(m, text.decode())
    return end


@_op(b"Q", "BINPERSID")
def _binpersid(m: Machine, pos: int) -> int:
    _resolve(m, m.stack.pop())
    return pos


def _refuse(code: bytes, name: str, why: str) -> None:
    def refuse(m: Machine, pos: int) -> int:
        raise FormatError(f"the opcode {name} {why}")

    _op(code, name)(refuse)


for _code, _name in ((b"\x82", "EXT1"), (b"\x83", "EXT2"), (b"\x84", "EXT4")):
    _refuse(_code, _name, "names a class by a private number")
for _code, _name in ((b"\x97", "NEXT_BUFFER"), (b"\x98", "READONLY_BUFFER")):
    _refuse(_code, _name, "needs data kept outside the pickle")
