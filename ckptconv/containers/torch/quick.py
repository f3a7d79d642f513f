"""Read a large pickle of plain objects with CPython's own unpickler, behind a guard; none of it is run.

Metadata of a trillion parameters are a pickle of 170 MB, which the machine of `inert` takes most of a minute
for. CPython's unpickler, in C, takes seconds. What it must not do is made impossible before it begins:

- **Calls.** It asks for every class and function by name and is given a stand-in: a list that keeps what it
  is given. A pickle with instructions that reach a class in another way is not read here.
- **Hashes.** Keys can be chosen to stall a dict, or to overflow the stack when they are hashed. So there are
  no dicts: the instructions that make and fill one become those of a list, of keys and values in turn.
- **Memory.** What the objects weigh is counted from the instructions; numbers of the memo are bounded.

All of this is decided on instructions found exactly (`tokens`). Whatever is not of this kind, or fails, is
left to `inert`, whose answer counts: a pickle that is damaged or hostile is refused there, by name.
"""

from __future__ import annotations

from _pickle import Unpickler
from collections.abc import Collection, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from ckptconv.collector import without_collector
from ckptconv.containers.torch.picklevm import Global, Limits, hollow_bytes, is_harmful, is_hollow
from ckptconv.containers.torch.tokens import ALLOWED, PAD, starts

__all__ = ["PAD", "Thing", "load", "pairs"]

_NEWOBJ, _NO_ARGUMENTS, _MEMOIZE, _FRAME, _TUPLE2 = 0x81, ord(")"), 0x94, 0x95, 0x86
_MARK, _STOP, _SETITEM, _APPEND = b"(.sa"
_EMPTY: Final = b"]}(N)"
_FEW: Final = 1 << 20
_MAX_NAMES: Final = 20_000  # looked up in one pickle
_MAX_CLASSES: Final = 256
_MAX_BATCHES: Final = 64

# What instructions make, in bytes; each also leaves a word on the stack or in a container.
_WORD: Final = 8
_WEIGHTS: Final = dict.fromkeys(b"]}\x81R", 160) | dict.fromkeys(b"X\x8cCB", 56) | {
    **dict.fromkeys(b"t\x85\x86\x87s", 64), **dict.fromkeys(b"J\x8aG", 32), ord("\x8a"): 64, ord("("): 16,
}  # fmt: skip

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Mask = npt.NDArray[np.bool_]
    Positions = npt.NDArray[np.int64]


@cache
def _are(codes: bytes) -> Mask:
    table = np.zeros(256, np.bool_)
    table[list(codes)] = True
    return table


_PUTS: Final = b"qr\x94"
_AS_LISTS: Final = tuple(zip(b"}u", b"]e", strict=True))
_INSTEAD_OF_FRAME: Final = b"K\x000K\x000K\x000"  # a number, dropped again
_PART: Final = 1 << 18


@cache
def _steps() -> npt.NDArray[np.int8]:
    """Return by how much each instruction makes marks more."""
    table = np.zeros(256, np.int8)
    table[list(b"(")], table[list(b"tue")] = 1, -1
    return table


class Thing(list[Any]):
    """Stand for an object of a class that is not loaded; the class stands for that class.

    Its elements are what it was given: states, one each time, and whatever was appended to it, keys and
    values in turn if it is a mapping.
    """

    __slots__ = ("args",)
    module: ClassVar[str]
    name: ClassVar[str]
    args: tuple[object, ...]

    def __init__(self, *args: object) -> None:
        self.args = args

    # In C, so that an object costs no call into Python.
    __setstate__ = list.append

    @classmethod
    def stands_for(cls) -> Global:
        """Return the class as a name."""
        return Global(cls.module, cls.name)


class _Dropped(Thing):
    """Stand for an object nobody asks about: it keeps nothing."""

    __slots__ = ()
    __setstate__ = list.count  # type: ignore[assignment]


# ``torch.Size`` of a tuple is that tuple; anything else is an error.
_SIZE: Final = ().__add__


class _Odd(Exception):
    """The pickle is not of the kind that is read here."""


def load(raw: bytes, *, limits: Limits, dropped: Collection[str] = (), without: bytes = b"") -> object | None:
    """Read a pickle; None if it is left to `inert`.

    Dicts are lists of keys and values in turn, see `pairs`; objects are `Thing`, classes are its subclasses.

    Args:
        raw: The pickle, and `PAD` zeros after it.
        limits: Bounds on what it may weigh.
        dropped: Dotted names of classes whose objects may be left empty.
        without: Key of a list that may be left empty.
    """
    size = len(raw) - PAD
    data = np.frombuffer(raw, np.uint8)
    if not 0 < size <= limits.size or is_hollow(hollow_bytes(raw), size):
        return None
    if _occurrences(data, _EMPTY) > max(_FEW, size // 4):
        return None  # little but containers, which weigh too much
    try:
        begins = starts(raw, data, size)
        if begins is None:
            return None
        budget, unused = limits.allows(size), frozenset(dropped)
        hole = _list_under(without, raw, data[:size], begins) if without else (0, 0)
        with without_collector():
            try:
                return _read(_rewritten(data[:size], begins, budget, hole), unused)
            except Exception:
                if hole == (0, 0):
                    raise
            return _read(_rewritten(data[:size], begins, budget, (0, 0)), unused)
    except MemoryError:
        raise
    except Exception:  # whatever it is, `inert` finds it and says where
        return None


def _read(rewritten: Bytes, dropped: frozenset[str]) -> object:
    root: object = _Reader(_Whole(rewritten), dropped).load()
    return root


def pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of what was a dict; a tuple is a pair that was set by itself.

    Raises:
        ValueError: if a key has no value.
    """
    values = iter(flat)
    for key in values:
        if type(key) is tuple:
            one, value = key
            yield one, value
            continue
        for value in values:
            yield key, value
            break
        else:
            raise ValueError("a key without a value")


class _Reader(Unpickler):
    """CPython's unpickler, given stand-ins."""

    def __init__(self, file: _Whole, dropped: frozenset[str]) -> None:
        super().__init__(file)
        self._dropped = dropped
        self._classes: dict[tuple[str, str], Any] = {("torch", "Size"): _SIZE}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function; nothing is imported."""
        found = self._classes.get((module, name))
        if found is None:
            if type(module) is not str or type(name) is not str or is_harmful(Global(module, name)):
                raise _Odd
            if len(self._classes) >= _MAX_CLASSES:
                raise _Odd
            base = _Dropped if f"{module}.{name}" in self._dropped else Thing
            found = type("Stand", (base,), {"__slots__": (), "module": module, "name": name})
            self._classes[module, name] = found
        return found


class _Whole:
    """Hand out a pickle at once, so that it is not copied."""

    def __init__(self, data: Bytes) -> None:
        self._data: Any = data.data

    def peek(self, count: int) -> Any:
        data, self._data = self._data, b""
        return data

    def read(self, count: int) -> bytes:
        return b""

    def readline(self) -> bytes:
        return b""


# The guard


def _rewritten(data: Bytes, begins: Mask, budget: int, hole: tuple[int, int]) -> Bytes:
    """Return the pickle without dicts, frames, and a part that is left out.

    Raises:
        _Odd: if it is not of the kind that is read here.
    """
    begin, end = hole
    stored = 0
    if end:
        inside = np.sum([_counts(data[at], begins[at]) for at in _parts(begin, end)], axis=0)
        _check_allowed(inside)
        stored = int(inside[list(_PUTS)].sum())
        data = np.concatenate([data[:begin], data[end:]])
        begins = np.concatenate([begins[:begin], begins[end:]])
    else:
        data = data.copy()
    counts = np.zeros(256, np.int64)
    frames, alone = [], []
    before, highest = 0, -1
    for at in _parts(0, len(data)):
        part, here = data[at], begins[at]
        codes = part[here]
        if not len(codes):
            continue
        counts += np.bincount(codes, minlength=256)
        made = np.flatnonzero(codes == _NEWOBJ)
        if (np.where(made > 0, codes[made - 1], before) != _NO_ARGUMENTS).any():
            raise _Odd  # arguments would be lost
        before = int(codes[-1])
        only = part * here  # no instruction is 0
        if len(numbered := np.flatnonzero(only == ord("r"))):
            highest = max(highest, int(_u32(data, numbered + (at.start + 1)).max()))
        frames.append(np.flatnonzero(only == _FRAME) + at.start)
        alone.append(np.flatnonzero(only == _SETITEM) + at.start)
        for code, instead in _AS_LISTS:
            part[only == code] = instead
    _check(len(data), before, counts, budget)
    if highest > int(counts[list(_PUTS)].sum()) + stored + 256:
        raise _Odd  # no number may make the memo larger than what is stored in all
    if stored and counts[_MEMOIZE]:  # numbers count what was stored, and now count less
        _check_recalled(data, begins, counts, begin)
    for i, byte in enumerate(_INSTEAD_OF_FRAME):
        data[np.concatenate(frames) + i] = byte
    if counts[_SETITEM]:  # made to append a pair: an instruction more
        where = np.concatenate(alone)
        data[where] = _APPEND
        data = np.insert(data, where, _TUPLE2)
    return data


def _parts(begin: int, end: int) -> Iterator[slice]:
    """Yield slices that fit the processor's cache: what is made of one is not memory to be had anew."""
    for at in range(begin, end, _PART):
        yield slice(at, min(at + _PART, end))


def _occurrences(data: Bytes, codes: bytes) -> int:
    """Count the bytes that are one of these, wherever they are."""
    parts = (data[at] for at in _parts(0, len(data)))
    return sum(int(np.count_nonzero(part == code)) for part in parts for code in codes)


def _counts(data: Bytes, begins: Mask) -> Positions:
    return np.bincount(data[begins], minlength=256)


def _check_allowed(counts: Positions) -> None:
    if any(count and code not in ALLOWED for code, count in enumerate(counts.tolist())):
        raise _Odd


def _check(size: int, last: int, counts: Positions, budget: int) -> None:
    _check_allowed(counts)
    if counts[_STOP] != 1 or last != _STOP or counts[ord("c")] + counts[0x93] > _MAX_NAMES:
        raise _Odd
    weight = 4 * size + sum(int(counts[code]) * each for code, each in _WEIGHTS.items())
    if weight + _WORD * int(counts.sum()) > budget:
        raise _Odd


def _check_recalled(data: Bytes, begins: Mask, counts: Positions, hole: int) -> None:
    """Check that nothing is recalled after a hole that was stored in it or later, under a number that counts.

    Args:
        data: The pickle.
        begins: Where its instructions begin.
        counts: How many there are of each.
        hole: Where some were left out that stored something.
    """
    if counts[ord("q")] or counts[ord("r")]:
        raise _Odd
    first = sum(int(_counts(data[at], begins[at])[list(_PUTS)].sum()) for at in _parts(0, hole))
    rest = begins[hole:]
    short = np.flatnonzero(rest & (data[hole:] == ord("h"))) + hole
    long = np.flatnonzero(rest & (data[hole:] == ord("j"))) + hole
    if (data[short + 1] >= first).any() or (_u32(data, long + 1) >= first).any():
        raise _Odd


def _u32(data: Bytes, at: Positions) -> Positions:
    value = data[at].astype(np.int64)
    for i in range(1, 4):
        value |= data[at + i].astype(np.int64) << (8 * i)
    return value


def _list_under(key: bytes, raw: bytes, data: Bytes, begins: Mask) -> tuple[int, int]:
    """Return where the elements of the list under a key begin and end; ``(0, 0)`` if that does not show."""
    found = raw.find(key)
    coded = next(
        (n for n in (2, 5) if found >= n and begins[found - n] and data[found - n + 1] == len(key)), 0
    )
    if not coded or data[found - coded] != {2: 0x8C, 5: ord("X")}[coded]:
        return 0, 0
    after = found + len(key)
    ahead = (np.flatnonzero(begins[after : after + 64]) + after).tolist()
    rest = [at for at in ahead if not _are(_PUTS)[data[at]]]
    if len(rest) < 2 or data[rest[0]] != ord("]") or data[rest[1]] != _MARK:
        return 0, 0
    begin = end = rest[1]
    depth = batches = 0
    for part in _parts(begin, len(data)):
        depths = np.cumsum(_steps()[data[part][begins[part]]], dtype=np.int32) + depth
        if not depths.all():  # which is rare
            at = np.flatnonzero(begins[part])[np.diff(depths == 0, prepend=depth == 0) & (depths == 0)]
            for zero in (at[: _MAX_BATCHES + 1] + part.start).tolist():
                batches += 1
                if batches > _MAX_BATCHES or data[end] != _MARK or data[zero] != ord("e"):
                    return (begin, end) if end > begin else (0, 0)
                end = zero + 1
        depth = int(depths[-1]) if len(depths) else depth
    return (begin, end) if end > begin else (0, 0)
