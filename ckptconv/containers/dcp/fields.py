"""Read fields of inert objects, whatever their class is called, out of either form a pickle is read in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final

from ckptconv.containers.torch.picklevm import Global, Record
from ckptconv.containers.torch.quick import Thing, pairs

__all__ = ["Fields", "class_of", "columns_of", "halves_of", "is_object", "items_of", "state_of"]

_ABSENT: Final = object()


def class_of(value: object) -> Global | None:
    """Return the name of an object's class, or of a class itself; None for plain values."""
    if isinstance(value, Thing):
        return value.stands_for()
    if type(value) is Record:
        return value.callee
    if type(value) is Global:
        return value
    return value.stands_for() if isinstance(value, type) and issubclass(value, Thing) else None


def is_object(value: object) -> bool:
    """Whether a value stands for an object, not for a class."""
    return isinstance(value, Thing) or type(value) is Record


def state_of(value: object) -> object:
    """Return the state of an object, as its pickle gives it."""
    if isinstance(value, Thing):
        return value[0] if len(value) == 1 else None
    return value.state if type(value) is Record else None


def items_of(value: object) -> Iterable[tuple[Any, Any]] | None:
    """Return the items of a dict; None if it is none."""
    if type(value) is list:
        return pairs(value)
    return value.items() if type(value) is dict else None


def halves_of(value: object) -> tuple[list[Any], list[Any]] | None:
    """Return the keys and the values of a dict; None if it is none.

    Raises:
        ValueError: if a key has no value.
    """
    if type(value) is list and tuple in set(map(type, value[::2])):
        value = [x for pair in pairs(value) for x in pair]
    if type(value) is list:
        keys, values = value[::2], value[1::2]
        if len(keys) != len(values):
            raise ValueError("a key without a value")
        return keys, values
    return (list(value), list(value.values())) if type(value) is dict else None


def columns_of(values: Sequence[Any], fields: Mapping[str, bool]) -> dict[str, list[Any]] | None:
    """Return the fields of many objects, a list each; None if they do not all have the same, told alike.

    Args:
        values: The objects.
        fields: Names, and whether they may be lacking: it is None for all then.
    """
    if not all(issubclass(kind, Thing) for kind in set(map(type, values))):
        return None
    if set(map(len, values)) != {1}:
        return None
    states: list[Any] = list(chain.from_iterable(values))
    widths = set(map(len, states)) if set(map(type, states)) == {list} else {0, 1}
    width = widths.pop()
    if widths or width % 2:
        return None
    flat = list(chain.from_iterable(states))
    found: dict[str, list[Any]] = {}
    for i in range(0, width, 2):
        keys = flat[i::width]
        key = keys[0]
        if set(map(type, keys)) != {str} or key in found or keys.count(key) != len(keys):
            return None
        found[key] = flat[i + 1 :: width] if key in fields else []
    if any(not (lacking or key in found) for key, lacking in fields.items()):
        return None
    return {key: found[key] if key in found else [None] * len(states) for key in fields}


class Fields:
    """Get the same fields of many objects.

    Where each lies in a state is looked up once for all with the same keys that follow one another.

    Args:
        names: The fields.
    """

    __slots__ = ("_keys", "_last", "_names")

    def __init__(self, *names: str) -> None:
        self._names = names
        self._keys: str | None = None
        self._last: Callable[[list[Any]], Any] | None = None

    def of(self, value: object) -> tuple[Any, ...] | None:
        """Return the fields' values; None if it is no object, or lacks one of them.

        Raises:
            TypeError: if the name of a field is no text.
        """
        if isinstance(value, Thing):
            if len(value) != 1 or type(value[0]) is not list:
                return None
            state = value[0]
            if state and type(state[0]) is tuple:
                state = [x for pair in pairs(state) for x in pair]
            keys = "\0".join(state[::2])  # an error if one is no text: nothing else is compared or hashed
            if keys != self._keys:
                self._last = self._getter(keys.split("\0"))
                self._keys = keys
            return None if self._last is None else self._last(state)
        if type(value) is not Record:
            return None
        found = tuple([value.get(name, _ABSENT) for name in self._names])
        return None if _ABSENT in found else found

    def _getter(self, keys: list[str]) -> Callable[[list[Any]], Any] | None:
        if len(set(keys)) < len(keys) or not set(keys).issuperset(self._names):
            return None
        at = [2 * keys.index(name) + 1 for name in self._names]
        return itemgetter(*at) if len(at) > 1 else lambda state: (state[at[0]],)
