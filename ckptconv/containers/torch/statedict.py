"""Find the state dict in what a plain ``.pt``, ``.pth`` or ``.bin`` file holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.picklevm import Record
from ckptconv.containers.torch.torchtensors import odd_tensor, refuse_odd
from ckptconv.errors import FormatError

__all__ = ["state_dict_of"]

# Composer 0.32 has all under "state" (core/state.py).
_WRAPPERS: Final = ("state_dict", "model", "module", "model_state_dict", "state")
# torch 2.13 (_dynamo/eval_frame.py): pickled as a call with the module inside.
_COMPILED: Final = "torch._dynamo.eval_frame.OptimizedModule"
_MAX_WRAPPED: Final = 2
_MOST_SHOWN: Final = 8
_MAX_VISITS: Final = 2_000_000
_MAX_DEPTH: Final = 200
_MAX_NAME: Final = 4096


def state_dict_of(
    root: object, where: str | None = None, key: str | None = None
) -> tuple[dict[str, FileTensor], list[str]]:
    """Return the tensors of a model by name, and a note for each thing beside them.

    The state dict may be the root, or lie under ``state_dict``, ``model``, ``module`` or
    ``model_state_dict``, one or two levels deep. A module pickled whole is walked as its ``state_dict()``
    would be; one that was compiled is the module inside. Pairs of a name and a tensor are what they are the
    items of.

    Args:
        root: What the file holds.
        where: The file, for errors.
        key: Under which key the weights lie, where there are several or they have another one: ``ema``,
            ``state.net``, or the place in a list.

    Raises:
        FormatError: if there are no tensors, or one of a kind that cannot be located (sparse, quantized).
    """
    notes: list[str] = []
    found = root
    path = ""
    if key is not None:
        found = _plain(_under(root, key.split(".")))
        if not _is_module(found) and type(found) is not dict:
            what = _unusable(found)
            raise FormatError(
                f"the file holds no weights under {key!r}" + (f" but {what.text}" if what else ""),
                where=where,
                hint=what.hint if what else _choices(root, "--key takes "),
            )
        path = f"{key}."
    found = _plain(found)
    for _ in range(_MAX_WRAPPED):
        inner = _unwrap(found)
        if inner is None:
            break
        assert type(found) is dict
        notes += [
            f"{path}{_key(k)}: {_describe(v)}, beside the weights" for k, v in found.items() if k != inner
        ]
        path += f"{inner}."
        found = _plain(found[inner])
    if _is_module(found):
        tensors = dict(_module_items(found, notes))
    elif type(found) is dict:
        tensors = dict(_dict_items(found, path, notes))
    else:
        tensors = {}
    if not tensors:
        what = _unusable(found)
        raise FormatError(
            f"no state dict in this file: it holds {what.text if what else _describe(root)}",
            where=where,
            hint=what.hint if what else _choices(root, "say which are the weights: --key "),
        )
    return tensors, notes


def _under(value: object, words: list[str]) -> object:
    """Return what lies under a path of keys, which may hold dots themselves; None if nothing does."""
    if not words:
        return value
    for count in range(len(words), 0, -1):
        name, rest = ".".join(words[:count]), words[count:]
        inner: object = None
        if type(value) is dict:
            inner = value.get(name, value.get(int(name)) if name.isdigit() else None)
        elif isinstance(value, list | tuple) and name.isdigit() and int(name) < len(value):
            inner = value[int(name)]
        if inner is not None and (found := _under(inner, rest)) is not None:
            return found
    return None


class _Unusable(NamedTuple):
    """Describe weights that cannot be read, and what to do about it."""

    number: int
    size: int
    what: str
    hint: str

    @property
    def text(self) -> str:
        return f"{self.number} {self.what}"


def _unusable(value: object) -> _Unusable | None:
    """Describe arrays of numpy, which are spelled out inside the pickle, and tensors in a list."""
    values = list(value.values() if type(value) is dict else value if isinstance(value, list | tuple) else ())
    arrays = [size for v in values if (size := _array_bytes(v)) is not None]
    if arrays:
        hint = "save tensors: torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, FILE)"
        return _Unusable(len(arrays), sum(arrays), "arrays of numpy", hint)
    tensors = [v.nbytes for v in values if type(v) is FileTensor]
    if tensors and type(value) is not dict:
        return _Unusable(len(tensors), sum(tensors), "tensors without names", "save model.state_dict()")
    return None


def _array_bytes(value: object) -> int | None:
    """Return the bytes of an array of numpy; None if it is none.

    numpy 2.3 (``_core/src/multiarray/methods.c``, ``array_reduce`` and ``array_reduce_ex_picklebuffer``).
    """
    if type(value) is not Record or not value.cls.startswith("numpy."):
        return None
    call = value.cls.rpartition(".")[2]
    parts: Any = value.state if call == "_reconstruct" else value.args if call == "_frombuffer" else ()
    held = (parts[-1] if call == "_reconstruct" else parts[0]) if isinstance(parts, tuple) and parts else None
    return len(held) if isinstance(held, bytes | bytearray) else None


def _plain(value: object) -> object:
    """Return the module inside one that was compiled, and a dict of pairs of a name and a tensor."""
    if type(value) is Record and value.cls == _COMPILED and value.args and _is_module(value.args[0]):
        return value.args[0]
    if type(value) is list and value and all(_is_pair(v) for v in value):
        return dict(value)
    return value


def _is_pair(value: object) -> bool:
    return type(value) is tuple and len(value) == 2 and type(value[0]) is str and type(value[1]) is FileTensor


def _choices(root: object, say: str) -> str:
    """List where state dicts lie in a file, each with its size, and what else could be meant."""
    found = list(_state_dicts(root, "", 0))
    if not found:
        return "save model.state_dict(), or the dict under one of " + ", ".join(_WRAPPERS)
    words = [f"{path} ({count} {what}, {size:,} bytes)" for path, count, size, what in found[:_MOST_SHOWN]]
    more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    if all(what != "tensors" for *_, what in found):
        say = "save model.state_dict(); all there is are "
    return say + ", ".join(words) + more


def _state_dicts(value: object, path: str, depth: int) -> Iterator[tuple[str, int, int, str]]:
    """Yield the path of every state dict or module, how many tensors it has, their bytes, what they are."""
    value = _plain(value)
    if depth:
        notes: list[str] = []
        items: dict[str, FileTensor] = {}
        if _is_module(value):
            items = dict(_module_items(value, notes))
        elif type(value) is dict:
            items = {k: v for k, v in value.items() if type(k) is str and type(v) is FileTensor}
        if items:
            yield path, len(items), sum(t.nbytes for t in items.values()), "tensors"
            return
        if (other := _unusable(value)) is not None:
            yield path, other.number, other.size, other.what
            return
    if depth == _MAX_WRAPPED + 1:
        return
    inside: list[tuple[object, object]] = []
    if type(value) is dict:
        inside = [(k, v) for k, v in value.items() if type(k) is str]
    elif isinstance(value, list | tuple):
        inside = list(enumerate(value[:_MOST_SHOWN]))
    for name, inner in inside:
        yield from _state_dicts(inner, f"{path}.{name}" if path else str(name), depth + 1)


def _unwrap(value: object) -> str | None:
    """Return the key under which a dict keeps its weights, if it wraps them."""
    if type(value) is not dict:
        return None
    for key in _WRAPPERS:
        inner = _plain(value.get(key))
        if _is_module(inner) or (type(inner) is dict and (_unwrap_holds(inner) or _holds_tensor(inner))):
            return key
    return None


def _unwrap_holds(value: dict[object, object]) -> bool:
    inner = (value.get(key) for key in _WRAPPERS)
    return any(_is_module(v) or (type(v) is dict and _holds_tensor(v)) for v in inner)


def _holds_tensor(value: dict[object, object]) -> bool:
    return any(type(v) is FileTensor or odd_tensor(v) is not None for v in value.values())


def _dict_items(
    values: dict[object, object], path: str, notes: list[str]
) -> Iterator[tuple[str, FileTensor]]:
    for key, value in values.items():
        if type(value) is FileTensor and type(key) is str:
            yield key, value
        else:
            refuse_odd(f"{path}{_key(key)}", value)
            why = "under a key that is no name" if type(value) is FileTensor else "not a tensor"
            notes.append(f"{path}{_key(key)}: {_describe(value)}, {why}")


def _is_module(value: object) -> bool:
    return type(value) is Record and all(type(value.get(n)) is dict for n in ("_parameters", "_modules"))


def _module_items(root: object, notes: list[str]) -> Iterator[tuple[str, FileTensor]]:
    """Yield what ``state_dict()`` of a pickled module would hold, in its order."""
    todo: list[tuple[str, object, int]] = [("", root, 0)]
    visits = 0
    while todo:
        prefix, module, depth = todo.pop()
        visits += 1
        if depth > _MAX_DEPTH or visits > _MAX_VISITS or len(prefix) > _MAX_NAME:
            raise FormatError("modules are nested without end")
        if not _is_module(module):
            notes.append(f"{prefix[:-1]}: {_describe(module)}, not a module")
            continue
        assert type(module) is Record
        skipped = module.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            values = module.get(group)
            for name, value in values.items() if type(values) is dict else ():
                visits += 1
                full = f"{prefix}{_key(name)}"
                if value is None or (group == "_buffers" and type(skipped) is set and name in skipped):
                    continue
                if type(value) is FileTensor:
                    yield full, value
                else:
                    refuse_odd(full, value)
                    notes.append(f"{full}: {_describe(value)}, not a tensor")
        children = module.get("_modules")
        if type(children) is dict:
            todo += [
                (f"{prefix}{_key(name)}.", child, depth + 1)
                for name, child in reversed(children.items())
                if child is not None
            ]


def _key(key: object) -> str:
    return key if type(key) is str else repr(key) if type(key) is int else f"<{type(key).__name__}>"


def _describe(value: object) -> str:
    """Say in a few words what a value is, without walking all of a tree that may not end."""
    if type(value) is FileTensor:
        return "a tensor"
    if type(value) is Record:
        return f"an object of {value.cls}"
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        count = _count_tensors(value)
        return f"a {type(value).__name__} of {len(value)}" + (f" with {count} tensors" if count else "")
    return f"a {type(value).__name__}"


def _count_tensors(value: object) -> int:
    todo: list[object] = [value]
    seen: set[int] = set()
    count = 0
    while todo and len(seen) < _MAX_VISITS:
        node = todo.pop()
        if id(node) in seen:
            continue
        if type(node) is FileTensor:
            count += 1
        elif isinstance(node, (dict, list, tuple)):
            seen.add(id(node))
            todo.extend(node.values() if isinstance(node, dict) else node)
        elif type(node) is Record:
            seen.add(id(node))
            todo.extend((node.args, node.state, node.items, node.entries))
    return count
