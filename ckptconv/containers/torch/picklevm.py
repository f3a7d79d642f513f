"""Hold the state of the inert pickle machine: its values, its budget, and what a call turns into.

Nothing here imports or calls what a pickle names. The opcodes are in ``pickleops``, the entry points in
``inert``.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any, Final, Literal

from ckptconv.errors import FormatError
from ckptconv.records import dataclass

__all__ = [
    "ENTRY", "FACTORIES", "LIST", "WORD", "Global", "Hook", "Limits", "Machine", "Record", "Truncated",
    "hollow_bytes", "is_harmful", "is_hollow", "short",
]  # fmt: skip

# Numbers hash the same in every process, so keys that are numbers or tuples of numbers can be chosen to meet
# in a dict: many in one place of its table, or with more bits than a hash has, in the hash itself. That makes
# the dict quadratic. Each such key of a large dict is taken to meet all others, one probe each: some ten
# thousand may be there. Numbers below _DENSE are too few to do it.
_HASH_BITS: Final = 60
_DENSE: Final = 1 << 18
_TUPLE_BITS: Final = 20
_SMALL_DICT: Final = 256
_MAX_PROBES: Final = 100_000_000
_SAME_HASH: Final = 4  # times as slow: such keys are compared as well

# What objects weigh, in bytes (CPython 3.11, 64 bits, with what the collector adds and malloc rounds).
WORD: Final = 8
LIST: Final = 72
ENTRY: Final = 48  # of a dict or set, at the margin
_RECORD: Final = 128
_CALL: Final = 256  # of a hook: a located tensor and its places
_NONE: Final[Mapping[Any, object]] = MappingProxyType({})  # one for all records without
# Empty containers, constants, marks, small tuples, POP, DUP, MEMOIZE: up to a third of a real pickle.
_HOLLOW: Final = b"N)]}(\x8f\x88\x8902\x85\x86\x87\x94"
_HOLLOW_FROM: Final = 8 << 20
_PART: Final = 1 << 18
_MAX_CALLEES: Final = 256  # kept of one pickle


# What a pickle calls to do harm. No checkpoint needs any of it, so such a call says what the file is; every
# other callable becomes a record. Nothing is run either way. A package counts with all that is inside it, a
# module whose name a user's own package may have only by itself.
_HARMFUL_PACKAGES: Final = frozenset({
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "pty", "ctypes", "_ctypes", "importlib",
    "runpy", "webbrowser", "multiprocessing", "asyncio", "pickle", "_pickle", "cPickle", "dill",
    "cloudpickle", "marshal", "pydoc", "popen2", "torch.hub", "torch.utils.cpp_extension",
})  # fmt: skip
_HARMFUL_MODULES: Final = frozenset(
    {"bdb", "cProfile", "code", "codeop", "commands", "imp", "pdb", "pip", "profile", "timeit", "trace"}
)
_HARMFUL_BUILTINS: Final = frozenset({
    "__import__", "apply", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "exit", "file",
    "globals", "help", "input", "locals", "open", "quit", "raw_input", "setattr", "vars",
})  # fmt: skip


def is_harmful(name: Global) -> bool:
    """Whether calling this would do harm that no checkpoint needs."""
    if name.module in ("builtins", "__builtin__", "io", "_io", "codecs"):
        return name.name in _HARMFUL_BUILTINS
    parts = name.module.split(".")
    inside = any(".".join(parts[:n]) in _HARMFUL_PACKAGES for n in range(1, len(parts) + 1))
    return inside or name.module in _HARMFUL_MODULES


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound what one pickle may cost.

    Attributes:
        size: Bytes of the pickle, and so of every string in it.
        weight: Bytes that the objects it makes may weigh, whatever its size: an empty set costs one byte of a
            pickle and 216 of memory, so the size alone would not bound memory well.
        growth: How many times its size they may weigh, if that is more; with its own text, the stack and
            what the collector of memory leaves over it is 16 times in all.
        key_nodes: Elements of a tuple or frozenset used as a key. Shared tuples can unfold exponentially
            when hashed.
        integer: Bytes of one integer.
    """

    size: int = 1 << 28
    weight: int = 1 << 28
    growth: int = 14
    key_nodes: int = 256
    integer: int = 1024

    def allows(self, size: int) -> int:
        """Return what the objects of so long a pickle may weigh."""
        return max(self.weight, self.growth * size)


@dataclass(frozen=True, slots=True)
class Global:
    """Name something a pickle refers to (a class, a function, a dtype); it is never imported."""

    module: str
    name: str

    @property
    def qualified(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False, repr=False)
class Record:
    """Keep what a pickle says about an object of a class that is not loaded.

    Attributes:
        cls: Dotted name of the class or function, or ``"<call>"`` where the callee is itself the result of
            a call; then ``args`` is ``(callee, arguments)``.
        args: Positional arguments it would have been called with.
        kwargs: Keyword arguments.
        state: What ``BUILD`` (``__setstate__``) would have been given.
        items: Elements appended (list subclasses).
        entries: Keys set (dict subclasses).
        form: How it is made: by a call, by ``cls.__new__``, or by ``copyreg._reconstructor`` on a built-in
            base class, of which only the contents are kept.
        module: The module part of ``cls``, where the pickle says it; without, all before the last dot.
    """

    cls: str
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=lambda: _NONE)
    state: object = None
    items: list[object] | tuple[()] = ()
    entries: Mapping[object, object] = field(default_factory=lambda: _NONE)
    form: Literal["call", "new", "reconstruct"] = "call"
    module: str | None = None

    @property
    def callee(self) -> Global:
        """The class or function, as a name."""
        module = self.cls.rpartition(".")[0] if self.module is None else self.module
        return Global(module, self.cls[len(module) + 1 :])

    def append(self, values: Iterable[object]) -> None:
        """Add elements."""
        if type(self.items) is not list:
            self.items = []
        self.items += values

    def set(self, pairs: Iterable[tuple[object, object]]) -> None:
        """Set keys; whoever calls it has checked them."""
        if type(self.entries) is not dict:
            self.entries = {}
        self.entries.update(pairs)

    def get(self, name: str, default: object = None) -> object:
        """Return an attribute from the state: a dict, or the ``(dict, slots)`` pair of protocol 2."""
        if type(self.state) is dict:
            return self.state.get(name, default)
        parts = self.state if type(self.state) is tuple and len(self.state) == 2 else ()
        for part in parts:
            if type(part) is dict and name in part:
                return part[name]
        return default

    def __repr__(self) -> str:
        return f"Record({self.cls!r})"


# What a defaultdict can be told to make of a missing key and still be no more than data.
FACTORIES: Final = {t.__name__: t for t in (bool, dict, float, int, list, set, str, tuple)}

Hook = Callable[[tuple[object, ...]], object]
_Constructor = Callable[["Machine", tuple[object, ...]], object]


class Truncated(Exception):
    """The data ends inside an instruction."""


def _points(bits: int) -> int:
    return _SAME_HASH if bits > _HASH_BITS else 1


def hollow_bytes(data: bytes) -> int:
    """Count the bytes that can be an instruction without a content."""
    whole = len(data) <= _PART  # parts that fit the processor's cache, without a copy of all
    parts = (data,) if whole else (data[at : at + _PART] for at in range(0, len(data), _PART))
    return len(data) - sum(len(part.translate(None, _HOLLOW)) for part in parts)


def is_hollow(hollow: int, size: int) -> bool:
    """Whether a pickle is large and mostly instructions without a content: slow and heavy for nothing."""
    return size > _HOLLOW_FROM and 2 * hollow > size


def short(text: str, limit: int = 80) -> str:
    """Quote ``text`` for a message, cut to a readable length."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


class Machine:
    """Keep the stacks, the memo and the budget while a pickle is read."""

    __slots__ = (
        "budget", "callees", "data", "end", "exact", "far", "hooks", "limits", "memo", "meta",
        "persistent", "probes", "result", "size", "stack",
    )  # fmt: skip

    def __init__(
        self,
        data: bytes,
        persistent: Callable[[object], object] | None,
        hooks: Mapping[str, Hook] | None,
        limits: Limits,
        exact: bool = False,
    ) -> None:
        self.exact = exact
        self.data = data
        self.size = len(data)
        self.stack: list[object] = []
        self.meta: list[list[object]] = []
        # Picklers count the memo up from 0, so it is a list; what is stored elsewhere lies in ``far``.
        self.memo: list[object] = []
        self.far: dict[int, object] = {}
        # By identity, and so kept: the callee, its name, and what is made of its calls.
        self.callees: dict[int, tuple[Global, str, Hook | None, _Constructor | None]] = {}
        self.persistent = persistent
        self.hooks = hooks or {}
        self.limits = limits
        self.budget = limits.allows(len(data))
        self.probes = 0
        self.result: object = None
        self.end = 0

    def charge(self, weight: int) -> None:
        """Take the weight of an object, in bytes, from the budget."""
        self.budget -= weight
        if self.budget < 0:
            raise FormatError(
                f"its objects weigh more than {self.limits.growth} times the pickle, and more than "
                f"{self.limits.weight / 1e6:,.0f} MB"
            )

    def pop_mark(self) -> list[object]:
        """Return what was pushed since the last MARK, and drop the mark."""
        items = self.stack
        self.stack = self.meta.pop()
        self.budget += LIST
        return items

    def store(self, index: int, value: object) -> None:
        """Keep a value in the memo."""
        memo = self.memo
        if index == len(memo):
            memo.append(value)
            if self.far:
                self.far.pop(index, None)
        elif 0 <= index < len(memo):
            memo[index] = value
        else:
            self.charge(12 * WORD)
            self.far[index] = value

    def recall(self, index: int) -> object:
        """Return what was kept.

        Raises:
            KeyError: if nothing was.
        """
        return self.memo[index] if 0 <= index < len(self.memo) else self.far[index]

    def check_keys(self, keys: Iterable[object], size: int) -> None:
        """Refuse keys that cannot be hashed, or only at a cost out of proportion to the input.

        Args:
            keys: New keys, or elements of a set.
            size: How many the dict or set may have with them.
        """
        large = size > _SMALL_DICT
        for key in keys:
            kind = type(key)
            if kind is str:
                continue
            chosen = 0
            if kind is tuple or kind is frozenset:
                chosen = self._check_nested(key)  # type: ignore[arg-type]
            elif kind is int:
                if not 0 <= key < _DENSE:  # type: ignore[operator]
                    chosen = _points(key.bit_length())  # type: ignore[attr-defined]
            elif kind is float or kind is complex:
                chosen = _SAME_HASH
            if chosen and large:
                self.probes += chosen * size
                if self.probes > _MAX_PROBES:
                    raise FormatError(
                        f"of {size:,} keys of a dict too many are large numbers, which can be chosen to slow "
                        "it down without end"
                    )

    def _check_nested(self, key: tuple[object, ...] | frozenset[object]) -> int:
        """Return how bad it is if such a key was chosen to be slow."""
        todo: list[object] = [key]
        seen = 0
        bits = 0
        salted = False
        while todo:
            node = todo.pop()
            if isinstance(node, (tuple, frozenset)):
                seen += len(node) + 1
                if seen > self.limits.key_nodes:
                    raise FormatError(f"a key of more than {self.limits.key_nodes} elements")
                todo.extend(node)
            elif isinstance(node, (str, bytes)):
                salted = True
            else:
                bits += node.bit_length() if isinstance(node, int) else 64
        self.charge(WORD * seen)
        return 0 if salted or bits <= _TUPLE_BITS else _points(bits)

    def call(self, func: object, args: object, kwargs: object = None, *, new: bool = False) -> object:
        """Return what calling ``func`` would make: a known value, else a record of the call."""
        if type(args) is not tuple:
            raise FormatError(f"call arguments are a {type(args).__name__}, not a tuple")
        if kwargs is not None and type(kwargs) is not dict:
            raise FormatError(f"keyword arguments are a {type(kwargs).__name__}, not a dict")
        form: Literal["call", "new"] = "new" if new else "call"
        known = self.callees.get(id(func)) or self._callee(func)
        if known is None:
            self.charge(_RECORD)
            return Record("<call>", (func, args), kwargs or _NONE, form=form)
        callee, name, hook, constructor = known
        if not kwargs:
            if hook is not None:
                self.charge(_CALL)
                return hook(args)
            if constructor is not None:
                self.charge(LIST)
                made = constructor(self, args)
                if made is not None:
                    return made
        self.charge(_RECORD)
        return Record(name, args, kwargs or _NONE, form=form, module=callee.module)

    def _callee(self, func: object) -> tuple[Global, str, Hook | None, _Constructor | None] | None:
        """Look up what is called; None if it is the result of a call."""
        if type(func) is Record:
            return None
        if type(func) is not Global:
            raise FormatError(f"call of a {type(func).__name__}")
        name = func.qualified
        if is_harmful(func):
            raise FormatError(
                f"the pickle calls {short(name)}, which no checkpoint needs: it was made to do harm. "
                "Nothing of it was run"
            )
        if len(self.callees) >= _MAX_CALLEES:
            self.callees.clear()
        found = (func, name, self.hooks.get(name), (_EXACT if self.exact else _CONSTRUCTORS).get(name))
        self.callees[id(func)] = found
        return found

    def build(self, target: object, state: object) -> None:
        """Keep the state of a record; on plain values (an OrderedDict's ``_metadata``) ignore it.

        With ``exact`` none is ignored: an OrderedDict keeps its attributes, all else is refused.
        """
        if type(target) is Record:
            if self.exact and target.state is not None:
                raise FormatError("an object is given state twice")
            target.state = state
        elif target is None or isinstance(target, (Global, str, bytes, int, float)):
            raise FormatError(f"state given to a {type(target).__name__}")
        elif self.exact:
            _set_attributes(target, state)


def _set_attributes(target: object, state: object) -> None:
    """Set attributes of an OrderedDict, such as ``_metadata`` of ``Module.state_dict``."""
    if type(target) is not OrderedDict or type(state) is not dict:
        raise FormatError(f"state of a {type(state).__name__} given to a {type(target).__name__}")
    for name in state:
        if type(name) is not str or hasattr(OrderedDict, name):
            raise FormatError("an attribute that would hide one of OrderedDict's own")
    vars(target).update(state)


_Sequence = (list, tuple, set, frozenset)


def _elements(m: Machine, args: tuple[object, ...]) -> list[object] | None:
    """Return the elements of a single iterable argument, charged because they are copied."""
    if not args:
        return []
    if len(args) == 1 and type(args[0]) in _Sequence:
        items: list[object] = list(args[0])  # type: ignore[call-overload]
        m.charge(WORD * len(items))
        return items
    return None


def _sized(kind: type) -> _Constructor:
    hashed = kind in (set, frozenset)

    def make(m: Machine, args: tuple[object, ...]) -> object:
        items = _elements(m, args)
        if items is None:
            return None
        if hashed:
            m.charge(ENTRY * len(items))
            m.check_keys(items, len(items))
        return kind(items)

    return make


def _tuple(m: Machine, args: tuple[object, ...]) -> object:
    if len(args) == 1 and type(args[0]) is tuple:
        return args[0]
    items = _elements(m, args)
    return None if items is None else tuple(items)


def _dict(m: Machine, args: tuple[object, ...]) -> object:
    made: dict[object, object] = {}
    if not args:
        return made
    if len(args) != 1:
        return None
    source = args[0]
    if type(source) in (dict, OrderedDict):
        m.charge(ENTRY * len(source))  # type: ignore[arg-type]
        m.check_keys(source, len(source))  # type: ignore[arg-type]
        return dict(source)  # type: ignore[call-overload]
    items = _elements(m, args)
    if items is None:
        return None
    m.charge(ENTRY * len(items))
    for pair in items:
        if type(pair) not in (list, tuple) or len(pair) != 2:  # type: ignore[arg-type]
            raise FormatError("a dict is made of something that is not pairs")
        m.check_keys(pair[:1], len(items))  # type: ignore[index]
        made[pair[0]] = pair[1]  # type: ignore[index]
    return made


def _defaultdict(m: Machine, args: tuple[object, ...]) -> object:
    return _dict(m, args[1:])


def _ordered_dict(m: Machine, args: tuple[object, ...]) -> object:
    made = _dict(m, args)
    return OrderedDict(made) if type(made) is dict else None


def _exact_defaultdict(m: Machine, args: tuple[object, ...]) -> object:
    """Make a defaultdict whose factory is a plain type; any other stays a record."""
    factory: type | None = None
    if args and args[0] is not None:
        name = args[0]
        if type(name) is not Global or name.module not in ("builtins", "__builtin__"):
            return None
        factory = FACTORIES.get(name.name)
        if factory is None:
            return None
    made = _dict(m, args[1:])
    return defaultdict(factory, made) if type(made) is dict else None


def _as_record(m: Machine, args: tuple[object, ...]) -> object:
    return None


def _complex(m: Machine, args: tuple[object, ...]) -> object:
    if len(args) == 2 and type(args[0]) is float and type(args[1]) is float:
        return complex(args[0], args[1])
    return None


def _encode(m: Machine, args: tuple[object, ...]) -> object:
    """Undo how protocol 2 spells bytes: ``_codecs.encode(text, "latin1")``."""
    if len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"):
        m.charge(len(args[0]))
        return args[0].encode("latin-1")
    return None


def _bytes(m: Machine, args: tuple[object, ...]) -> object:
    return b"" if not args else None


def _bytearray(m: Machine, args: tuple[object, ...]) -> object:
    if not args:
        return bytearray()
    if len(args) == 1 and type(args[0]) is bytes:
        m.charge(len(args[0]))
        return bytearray(args[0])
    made = _encode(m, args)
    return bytearray(made) if type(made) is bytes else None


def _reconstructor(m: Machine, args: tuple[object, ...]) -> object:
    """Read ``copyreg._reconstructor(cls, base, state)``, how protocols 0 and 1 make objects."""
    if len(args) == 3 and type(args[0]) is Global:
        if args[2] is None:
            return Record(args[0].qualified, form="new", module=args[0].module)
        return Record(args[0].qualified, (args[2],), form="reconstruct", module=args[0].module)
    return None


def _newobj(m: Machine, args: tuple[object, ...]) -> object:
    if args and type(args[0]) is Global:
        m.charge(WORD * len(args))
        return Record(args[0].qualified, args[1:], form="new", module=args[0].module)
    return None


def _newobj_ex(m: Machine, args: tuple[object, ...]) -> object:
    """Read ``copyreg.__newobj_ex__(cls, args, kwargs)``, which the opcode NEWOBJ_EX stands for."""
    if len(args) == 3 and type(args[0]) is Global and args[0].qualified not in _CONSTRUCTORS:
        return m.call(*args, new=True)
    return None


_CONSTRUCTORS: Final[dict[str, _Constructor]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _defaultdict,
    "torch.Size": _tuple,
    "_codecs.encode": _encode,
    **{
        f"{module}.{name}": make
        for module in ("builtins", "__builtin__")
        for name, make in {
            "dict": _dict,
            "set": _sized(set),
            "frozenset": _sized(frozenset),
            "list": _sized(list),
            "tuple": _tuple,
            "bytes": _bytes,
            "bytearray": _bytearray,
            "complex": _complex,
        }.items()
    },
    **{
        f"{module}.{name}": make
        for module in ("copyreg", "copy_reg")
        for name, make in {
            "_reconstructor": _reconstructor,
            "__newobj__": _newobj,
            "__newobj_ex__": _newobj_ex,
        }.items()
    },
}
# What keeps every difference that matters to one who writes the value again.
_EXACT: Final[dict[str, _Constructor]] = {
    **_CONSTRUCTORS,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _exact_defaultdict,
    "torch.Size": _as_record,
}
