"""Write the pickle of a ``torch.save`` file: any tree of plain values, inert records and tensors.

Protocol 2, as ``torch.save`` uses, byte for byte what CPython's pickler writes for the same objects
(CPython 3.11, ``Lib/pickle.py``), with its memo: what is one object in the tree is one in the file. Only the
elements of sets are in an order of their own, the same in every process.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from struct import Struct
from typing import Any, Final, TypeVar

from ckptconv.containers.base import FileTensor, Placed, contiguous_stride
from ckptconv.containers.torch.picklevm import FACTORIES, Global, Record, is_harmful, short
from ckptconv.containers.torch.torchtensors import FileStorage
from ckptconv.dtypes import DType
from ckptconv.errors import PlanError
from ckptconv.records import dataclass

__all__ = ["MAX_DEPTH", "TensorRef", "dump"]

MAX_DEPTH: Final = 200
_BATCH: Final = 1000  # items of a container per opcode
_32: Final = 1 << 32

# Python 3 names as protocol 2 spells them (CPython 3.11, Lib/_compat_pickle.py).
_PYTHON2: Final = {"builtins": "__builtin__", "copyreg": "copy_reg"}

_T = TypeVar("_T")
_pack_float = Struct(">d").pack


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Stand for a tensor in a tree to be written; its data is placed in the file under ``name``.

    Two with the same name share one storage, as tied weights do; they must agree in type and shape.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]


def dump(root: object) -> tuple[bytes, tuple[TensorRef, ...]]:
    """Return the pickle of a tree, and a tensor for each storage in the order of their keys.

    The tree is made of None, bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set,
    frozenset, OrderedDict, defaultdict, :class:`TensorRef`, :class:`Global` and :class:`Record`, and of no
    subclass of these.

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
        self.out += b"q" + bytes([index]) if index < 256 else b"r" + index.to_bytes(4, "little")
        self._next += 1

    def _get(self, index: int) -> None:
        self.out += b"h" + bytes([index]) if index < 256 else b"j" + index.to_bytes(4, "little")

    def _recall(self, value: object) -> bool:
        known = self._memo.get(id(value))
        if known is None:
            return False
        self._get(known[0])
        return True

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
        typed = ref.dtype.torch_storage
        nbytes = Placed(ref.name, ref.dtype, ref.shape, 0).nbytes
        self.put_name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self.out += b"(("
        self.put_text("storage")
        self.put_name(*(("torch", typed) if typed else ("torch.storage", "UntypedStorage")))
        self.put_text(key)
        self.put_text("cpu")
        self.put_int(nbytes // ref.dtype.itemsize if typed else nbytes)
        self._tuple_of(5)
        self.out += b"QK\0"  # the storage, and an offset of 0 into it
        self._sizes(ref.shape)
        self._sizes(contiguous_stride(ref.shape))
        self.out += b"\x89"  # requires_grad
        self._empty_ordered_dict()  # hooks
        if not typed:
            self.put_name("torch", ref.dtype.name)
        self.out += b"t"
        self._memoize()
        self._reduce(ref)

    def _sizes(self, values: tuple[int, ...]) -> None:
        if not values:
            self.out += b")"
            return
        if len(values) > 3:
            self.out += b"("
        for value in values:
            self.put_int(value)
        self._tuple_of(len(values))

    def _empty_ordered_dict(self, value: object = None) -> None:
        self.put_name("collections", "OrderedDict")
        self.out += b")"
        self._reduce(value)

    def _tuple_of(self, count: int, value: object = None) -> None:
        """Close a tuple whose elements are written; one of more than three began with a mark."""
        self.out += (b")", b"\x85", b"\x86", b"\x87", b"t")[min(count, 4)]
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
