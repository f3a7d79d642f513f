"""Make dataclasses whose methods are compiled when they are first used.

The standard decorator writes and compiles up to six methods of each class while its module is imported: 0.4
ms a class on CPython 3.11, 80 ms for those of a conversion, which makes, compares or prints few of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(
        *, frozen: bool = False, slots: bool = False, repr: bool = True, eq: bool = True
    ) -> Callable[[type], type]:
        """Do what `dataclasses.dataclass` does, with the methods of the class left until one is looked up.

        Pseudo-fields (``InitVar``) are not known. For what is left out here there is the standard decorator;
        classes of either may derive from those of the other.
        """

        def made(cls: type) -> type:
            names = ["__init__", *["__repr__"] * repr, *["__eq__"] * eq, *["__hash__"] * (eq and frozen)]
            later = [name for name in names if vars(cls).get(name) is None]
            if eq and not frozen and not vars(cls).get("__hash__"):
                cls.__hash__ = None
            # A frozen base asks for a frozen class; else what refuses changes is one function for all.
            bases = [b.__dataclass_params__ for b in cls.__mro__[1:] if dataclasses.is_dataclass(b)]
            known = frozen and any(b.frozen for b in bases)
            record = dataclasses.dataclass(init=False, repr=False, eq=False, frozen=known, slots=slots)(cls)
            for name in later:
                setattr(record, name, _Later(name, record, later, frozen))
            if frozen:
                record.__dataclass_params__.frozen = True
                record.__setattr__, record.__delattr__ = _refuse_to_set, _refuse_to_delete
                if slots:
                    record.__getstate__, record.__setstate__ = _state, _restore
            return record

        return made


class _Later:
    """Stand for a method of a class: whoever looks it up first has them all compiled."""

    __slots__ = ("_frozen", "_name", "_names", "_record")

    def __init__(self, name: str, record: type, names: list[str], frozen: bool) -> None:
        self._name, self._record, self._names, self._frozen = name, record, names, frozen

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        record = self._record
        if vars(record)[self._name] is self:
            fields = [(f.name, f.type, f) for f in dataclasses.fields(record)]
            # All that is to be known of a method that the class has itself is whether it is there.
            more = {"__post_init__": None} if hasattr(record, "__post_init__") else {}
            twin = dataclasses.make_dataclass(record.__name__, fields, namespace=more, frozen=self._frozen)
            for name in self._names:
                setattr(record, name, vars(twin)[name])
        return vars(record)[self._name].__get__(instance, owner)


def _refuse_to_set(self: Any, name: str, value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in dataclasses.fields(self)]


def _restore(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
