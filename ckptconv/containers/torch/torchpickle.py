"""Write the pickle of a ``torch.save`` file: any tree of plain values, inert records and tensors.

Protocol 2, as ``torch.save`` uses, byte for byte what CPython's pickler writes for the same objects
(CPython 3.11, ``Lib/pickle.py``), with its memo: what is one object in the tree is one in the file. Only the
elements of sets are in an order of their own, the same in every process.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from functools import lru_cache
from itertools import islice
from math import prod
from struct import Struct
from typing import Any, Final, TypeVar

from ckptconv.containers.base import FileTensor, contiguous_stride
from ckptconv.containers.torch.picklevm import FACTORIES, Global, Record, is_harmful, short
from ckptconv.containers.torch.torchtensors import FileStorage
from ckptconv.dtypes import DType
from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = ["MAX_DEPTH", "Alike", "TensorRef", "dump"]

MAX_DEPTH: Final = 200
_BATCH: Final = 1000  # items of a container per opcode
_32: Final = 1 << 32

# Python 3 names as protocol 2 spells them (CPython 3.11, Lib/_compat_pickle.py).
_PYTHON2: Final = {"builtins": "__builtin__", "copyreg": "copy_reg"}

_TUPLES: Final = (b")", b"\x85", b"\x86", b"\x87", b"t")  # by the number of elements, at most 4
_NEW: Final = 1 << 30  # in a stamp: the next number of the memo

_T = TypeVar("_T")
_pack_float = Struct(">d").pack
_pack_u32 = Struct("<L").pack


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Stand for a tensor in a tree to be written; its data is placed in the file under ``name``.

    Two with the same name share one storage, as tied weights do; they must agree in type and shape.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]


class Alike:
    """Stand for a value like many others in a tree, of which two are worked out, and the rest stamped out.

    It is written as ``make(*same, *varying)`` would be, which no other part of the tree may hold.

    Args:
        make: Makes the value.
        same: What is equal in all that are alike, and taken for one object; it can be hashed.
        varying: What the value holds as it is, whatever is in it.
    """

    __slots__ = ("make", "same", "varying")

    def __init__(
        self, make: Callable[..., object], same: tuple[object, ...], varying: tuple[object, ...]
    ) -> None:
        self.make, self.same, self.varying = make, same, varying


@dataclass(frozen=True, slots=True)
class _Blank:
    """Stand for what varies in the value of which a stamp is made."""

    number: int
    value: object


@dataclass(frozen=True, slots=True)
class _Stamp:
    """Hold the pickle of a value that is like others.

    Attributes:
        parts: Bytes, and what follows them: `_NEW`, the number of a blank, or below 0 what was given the
            value's own `_NEW` of that number, the first being -1.
        last: The bytes behind all parts.
    """

    parts: tuple[tuple[bytes, int], ...]
    last: bytes


@dataclass(slots=True)
class _Making:
    """Keep account of a stamp while the value is written of which it is made.

    Attributes:
        begin: Where the bytes begin that are not among the parts yet.
        parts: As in the stamp.
        numbers: Numbers of the memo that are the value's own, in order.
    """

    begin: int
    parts: list[tuple[bytes, int]] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)


def dump(root: object) -> tuple[bytes, tuple[TensorRef, ...]]:
    """Return the pickle of a tree, and a tensor for each storage in the order of their keys.

    The tree is made of None, bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set,
    frozenset, OrderedDict, defaultdict, :class:`TensorRef`, :class:`Alike`, :class:`Global` and
    :class:`Record`, and of no subclass of these.

    Raises:
        PlanError: if it holds anything else, a cycle, more than 200 levels, or a name that does harm.
    """
    p = _Pickler()
    p.run(root)
    return bytes(p.out) + b".", tuple(ref for ref, _ in p.storages.values())


class _Pickler:
    """Write one tree, with its own stack in place of recursion.

    A container is a generator that yields what it holds and writes what stands around that.

    Attributes:
        out: The pickle, so far.
        storages: By name, the tensor that was first seen with it and its key.
    """

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\2")
        self.storages: dict[str, tuple[TensorRef, str]] = {}
        # By id, the number of an object in the memo; the object is kept so that its id stays its own.
        self._memo: dict[int, tuple[int, object]] = {}
        self._globals: dict[tuple[str, str], int] = {}
        self._next = 0
        self._path: list[object] = []
        self._stamps: dict[tuple[object, ...], _Stamp | None] = {}  # by form; None when one was written
        self._making: _Making | None = None

    def run(self, root: object) -> None:
        """Write ``root``."""
        stack: list[tuple[int, Iterator[object]]] = [(0, iter((root,)))]
        opened: set[int] = set()
        while stack:
            for value in stack[-1][1]:
                kind = type(value)
                leaf = _LEAVES.get(kind)
                if leaf is not None:
                    leaf(self, value)
                    continue
                branch = _BRANCHES.get(kind)
                if branch is None:
                    raise self.refuse(*_unknown(value))
                if id(value) in opened:
                    raise self.refuse(f"a {kind.__name__} that holds itself")
                if self._recall(value):
                    continue
                if len(stack) > MAX_DEPTH:
                    raise self.refuse(f"more than {MAX_DEPTH} levels of nesting")
                opened.add(id(value))
                stack.append((id(value), branch(self, value)))
                self._path.append(None)
                break
            else:
                opened.discard(stack.pop()[0])
                if self._path:
                    self._path.pop()

    def _put_leaf(self, value: object) -> bool:
        """Write what holds nothing, and so need not be waited for; False if it is a container."""
        leaf = _LEAVES.get(type(value))
        if leaf is None:
            return False
        leaf(self, value)
        return True

    def _put_any(self, value: object) -> None:
        """Write a value while another is being written."""
        if self._put_leaf(value) or self._recall(value):
            return
        if type(value) is tuple and all(type(one) is int for one in value):
            self._put_sizes(value, value)
            return
        self._path.append(None)
        self.run(value)

    def refuse(self, what: str, hint: str | None = None) -> PlanError:
        """Return the error for a value that cannot be written, with the keys that lead to it."""
        keys = [f"[{repr(k)[:80]}]" for k in self._path if k is not None]
        place = "".join(keys[:10] + ["..."] * (len(keys) > 10))
        at = f" at {place}" if place else ""
        return PlanError(f"cannot write{at}: {what}", hint=hint or "leave it out, or put plain values there")

    # The memo

    def _memoize(self, value: object = None) -> None:
        """Number what was just written; a value that is given can be recalled."""
        if value is not None:
            self._memo[id(value)] = (self._next, value)
        index = self._next
        self._next += 1
        if self._making is not None:
            self._making.numbers[index] = len(self._making.numbers)
        self._write(_put(index), _NEW)

    def _get(self, index: int) -> None:
        own = self._making.numbers.get(index) if self._making is not None else None
        code = b"j" + _pack_u32(index) if index > 255 else b"h" + bytes([index])
        if own is None:
            self.out += code
        else:
            self._write(code, -own - 1)

    def _write(self, code: bytes, what: int) -> None:
        """Write what is not the same in all that are alike."""
        making = self._making
        if making is None:
            self.out += code
            return
        making.parts.append((bytes(self.out[making.begin :]), what))
        self.out += code
        making.begin = len(self.out)

    def _recall(self, value: object) -> bool:
        known = self._memo.get(id(value))
        if known is None:
            return False
        self._get(known[0])
        return True

    # What is alike

    def put_alike(self, value: Alike) -> None:
        def write(*varying: object) -> None:
            self._put_any(value.make(*value.same, *varying))

        self._put_like((value.make, value.same, len(value.varying)), write, value.varying)

    def _put_like(
        self, form: tuple[object, ...], write: Callable[..., None], varying: tuple[object, ...]
    ) -> None:
        """Write a value that differs from others of its form in what varies alone.

        Args:
            form: The form.
            write: Called with what varies, writes the value.
            varying: What varies.
        """
        stamp = self._stamps.get(form)
        if self._making is not None:
            write(*varying)
        elif stamp is not None:
            self._put_stamp(stamp, varying)
        elif form not in self._stamps:  # what all have in common, names and classes, is in the memo after it
            self._stamps[form] = None
            write(*varying)
        else:
            making = self._making = _Making(len(self.out))
            write(*(_Blank(number, one) for number, one in enumerate(varying)))
            self._making = None
            self._stamps[form] = _Stamp(tuple(making.parts), bytes(self.out[making.begin :]))

    def _put_stamp(self, stamp: _Stamp, varying: tuple[object, ...]) -> None:
        out = self.out
        numbers: list[int] = []
        for raw, what in stamp.parts:
            out += raw
            if what == _NEW:
                index = self._next
                numbers.append(index)
                out += b"r" + _pack_u32(index) if index > 255 else b"q" + bytes((index,))
                self._next = index + 1
            elif what < 0:
                self._get(numbers[-what - 1])
            else:
                value = varying[what]
                leaf = _LEAVES.get(type(value))
                if leaf is not None:
                    leaf(self, value)
                else:
                    self._put_any(value)
        out += stamp.last

    def put_blank(self, blank: _Blank) -> None:
        making = self._making
        assert making is not None
        self._write(b"", blank.number)
        self._making = None
        self._put_any(blank.value)
        self._making, making.begin = making, len(self.out)

    # Leaves

    def put_int(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.out += b"K" + bytes([value])
        elif 0 <= value < 1 << 16:
            self.out += b"M" + value.to_bytes(2, "little")
        elif -1 << 31 <= value < 1 << 31:
            self.out += b"J" + value.to_bytes(4, "little", signed=True)
        else:
            # The least number of bytes in two's complement.
            length = (value if value >= 0 else ~value).bit_length() // 8 + 1
            self.out += b"\x8a" + bytes([length]) if length < 256 else b"\x8b" + length.to_bytes(4, "little")
            self.out += value.to_bytes(length, "little", signed=True)

    def put_float(self, value: float) -> None:
        self.out += b"G" + _pack_float(value)

    def put_text(self, value: str) -> None:
        if self._recall(value):
            return
        raw = value.encode("utf-8", "surrogatepass")
        if len(raw) >= _32:
            raise self.refuse(f"a text of {len(raw):,} bytes")
        self.out += b"X" + len(raw).to_bytes(4, "little") + raw
        self._memoize(value)

    def put_bytes(self, value: bytes) -> None:
        if self._recall(value):
            return
        if value:
            self.put_name("_codecs", "encode")
            self.put_text(value.decode("latin-1"))
            self.put_text("latin1")
            self._tuple_of(2)
        else:
            self.put_name("builtins", "bytes")
            self.out += b")"
        self._reduce(value)

    def put_bytearray(self, value: bytearray) -> None:
        if self._recall(value):
            return
        self.put_name("builtins", "bytearray")
        if value:
            self.put_bytes(bytes(value))
            self._tuple_of(1)
        else:
            self.out += b")"
        self._reduce(value)

    def put_complex(self, value: complex) -> None:
        if self._recall(value):
            return
        self.put_name("builtins", "complex")
        self.put_float(value.real)
        self.put_float(value.imag)
        self._tuple_of(2)
        self._reduce(value)

    def put_global(self, value: Global) -> None:
        self.put_name(value.module, value.name)

    def put_name(self, module: str, name: str) -> None:
        """Write a global; one inside a class as the attribute that it is."""
        module = _PYTHON2.get(module, module)
        known = self._globals.get((module, name))
        if known is not None:
            self._get(known)
            return
        self._check_name(module, name)
        first, *inner = name.split(".")
        for _ in inner:
            self.put_name("builtins", "getattr")
        if inner:
            self.put_name(module, first)
        else:
            self.out += f"c{module}\n{name}\n".encode()
        for attribute in inner:
            self.put_text(attribute)
            self._tuple_of(2)
            self.out += b"R"
        self._globals[module, name] = self._next
        self._memoize()

    def _check_name(self, module: str, name: str) -> None:
        parts = [*module.split("."), *name.split(".")]
        if not all(parts) or any(not p.isprintable() for p in parts):
            raise self.refuse(f"the name {short(f'{module}.{name}')}, which none can have")
        if is_harmful(Global(module, name)):
            raise self.refuse(f"{short(f'{module}.{name}')}, which no checkpoint needs and which can do harm")

    def put_tensor(self, ref: TensorRef) -> None:
        """Write the call that rebuilds a tensor on its storage (torch 2.13, ``Tensor.__reduce_ex__``)."""
        if self._recall(ref):
            return
        first, key = self.storages.setdefault(ref.name, (ref, str(len(self.storages))))
        if (first.dtype, first.shape) != (ref.dtype, ref.shape):
            raise self.refuse(
                f"the tensor {short(ref.name)} as {ref.dtype}{list(ref.shape)} and as "
                f"{first.dtype}{list(first.shape)}"
            )
        self._put_like(
            (ref.dtype.name, ref.shape), lambda key: self._put_rebuilt(ref.dtype, ref.shape, key), (key,)
        )
        self._memo[id(ref)] = (self._next - 1, ref)

    def _put_rebuilt(self, dtype: DType, shape: tuple[int, ...], key: object) -> None:
        typed, numel = dtype.torch_storage, prod(shape)
        self.put_name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self.out += b"(("
        self.put_text("storage")
        self.put_name(*(("torch", typed) if typed else ("torch.storage", "UntypedStorage")))
        self._put_leaf(key)
        self.put_text("cpu")
        self.put_int(numel if typed else numel * dtype.itemsize)
        self._tuple_of(5)
        self.out += b"QK\0"  # the storage, and an offset of 0 into it
        self._put_sizes(shape)
        self._put_sizes(contiguous_stride(shape))
        self.out += b"\x89"  # requires_grad
        self._empty_ordered_dict()  # hooks
        if not typed:
            self.put_name("torch", dtype.name)
        self.out += b"t"
        self._memoize()
        self._reduce(None)

    def _put_sizes(self, values: tuple[int, ...], value: object = None) -> None:
        self.out += _sizes(values)
        if values:
            self._memoize(value)

    def _empty_ordered_dict(self, value: object = None) -> None:
        self.put_name("collections", "OrderedDict")
        self.out += b")"
        self._reduce(value)

    def _tuple_of(self, count: int, value: object = None) -> None:
        """Close a tuple whose elements are written; one of more than three began with a mark."""
        self.out += _TUPLES[min(count, 4)]
        self._memoize(value)

    def _reduce(self, value: object) -> None:
        """Call what is written, with the arguments that are; the result is ``value``."""
        self.out += b"R"
        self._memoize(value)

    # Branches

    def put_tuple(self, value: tuple[object, ...]) -> Iterator[object]:
        if not value:
            self.out += b")"
            return
        if len(value) > 3:
            self.out += b"("
        for one in value:
            if not self._put_leaf(one):
                yield one
        self._tuple_of(len(value), value)

    def put_list(self, value: list[object]) -> Iterator[object]:
        self.out += b"]"
        self._memoize(value)
        yield from self._elements(value)

    def put_dict(self, value: dict[object, object]) -> Iterator[object]:
        self.out += b"}"
        self._memoize(value)
        yield from self._items(value)

    def put_ordered_dict(self, value: OrderedDict[object, object]) -> Iterator[object]:
        self._empty_ordered_dict(value)
        yield from self._items(value)
        if vars(value):
            yield vars(value)
            self.out += b"b"

    def put_default_dict(self, value: defaultdict[object, object]) -> Iterator[object]:
        factory = value.default_factory
        if factory is not None and factory not in FACTORIES.values():
            raise self.refuse(f"a defaultdict of a factory that is none of {', '.join(FACTORIES)}")
        self.put_name("collections", "defaultdict")
        if factory is None:
            self.out += b")"
        else:
            self.put_name("builtins", factory.__name__)
            self._tuple_of(1)
        self._reduce(value)
        yield from self._items(value)

    def put_set(self, value: set[object] | frozenset[object]) -> Iterator[object]:
        self.put_name("builtins", type(value).__name__)
        yield sorted(value, key=lambda v: (type(v).__name__, repr(v)))
        self._tuple_of(1)
        self._reduce(value)

    def put_record(self, value: Record) -> Iterator[object]:
        if value.form == "reconstruct":
            raise self.refuse(
                f"an object of {value.cls}, saved in pickle protocol 0 or 1", "save it with torch's defaults"
            )
        callee, args = value.args if value.cls == "<call>" else (value.callee, value.args)
        if value.kwargs:
            self.put_name("copyreg", "__newobj_ex__")
            yield (callee, args, value.kwargs)
            self.out += b"R"
        else:
            yield callee
            yield args
            self.out += b"\x81" if value.form == "new" else b"R"
        self._memoize(value)
        yield from self._elements(value.items)
        yield from self._items(value.entries)
        if value.state is not None:
            yield value.state
            self.out += b"b"

    def _elements(self, values: Iterable[object]) -> Iterator[object]:
        for batch in _batches(values):
            many = len(batch) > 1
            self.out += b"(" if many else b""
            for one in batch:
                if not self._put_leaf(one):
                    yield one
            self.out += b"e" if many else b"a"

    def _items(self, values: Mapping[object, object]) -> Iterator[object]:
        for batch in _batches(values.items()):
            many = len(batch) > 1
            self.out += b"(" if many else b""
            for key, value in batch:
                if not self._put_leaf(key):
                    yield key
                self._path[-1] = key
                if not self._put_leaf(value):
                    yield value
            self.out += b"u" if many else b"s"


@lru_cache(maxsize=1 << 14)  # a model's many tensors have few shapes; where each begins is said twice
def _sizes(values: tuple[int, ...]) -> bytes:
    """Return the opcodes of a tuple of numbers."""
    p = _Pickler()
    p.out = bytearray(b"(" if len(values) > 3 else b"")
    for one in values:
        p.put_int(one)
    return bytes(p.out) + _TUPLES[min(len(values), 4)]


def _put(index: int) -> bytes:
    """Return the opcode that gives what was just written a number of the memo."""
    return b"r" + _pack_u32(index) if index > 255 else b"q" + bytes([index])


def _batches(values: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(values)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _unknown(value: object) -> tuple[str, str | None]:
    """Say what a value is that no file can hold, and what to do."""
    if isinstance(value, (FileTensor, FileStorage)):
        return "a tensor or storage of another file", "put a TensorRef in its place"
    kind = type(value)
    return f"an object of {kind.__module__}.{kind.__qualname__}", None


def _constant(code: bytes) -> Callable[[_Pickler, Any], None]:
    def write(p: _Pickler, value: object) -> None:
        p.out += code

    return write


def _bool(p: _Pickler, value: bool) -> None:
    p.out += b"\x88" if value else b"\x89"


_LEAVES: Final[dict[type, Callable[[_Pickler, Any], None]]] = {
    type(None): _constant(b"N"),
    bool: _bool,
    int: _Pickler.put_int,
    float: _Pickler.put_float,
    str: _Pickler.put_text,
    bytes: _Pickler.put_bytes,
    bytearray: _Pickler.put_bytearray,
    complex: _Pickler.put_complex,
    Global: _Pickler.put_global,
    TensorRef: _Pickler.put_tensor,
    Alike: _Pickler.put_alike,
    _Blank: _Pickler.put_blank,
}
_BRANCHES: Final[dict[type, Callable[[_Pickler, Any], Iterator[object]]]] = {
    tuple: _Pickler.put_tuple,
    list: _Pickler.put_list,
    dict: _Pickler.put_dict,
    OrderedDict: _Pickler.put_ordered_dict,
    defaultdict: _Pickler.put_default_dict,
    set: _Pickler.put_set,
    frozenset: _Pickler.put_set,
    Record: _Pickler.put_record,
}
