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

        Pseudo-fields (``InitVar``) are not known. Classes made by it and by the standard decorator may derive
        from each other.
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
    """Stand for a method of a class until it is looked up, and so compiled."""

    __slots__ = ("_frozen", "_name", "_names", "_record")

    def __init__(self, name: str, record: type, names: list[str], frozen: bool) -> None:
        self._name, self._record, self._names, self._frozen = name, record, names, frozen

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        record, name = self._record, self._name
        if vars(record)[name] is self:
            if name == "__init__":
                record.__init__ = _init(record, self._frozen)  # type: ignore[misc]
            else:
                fields = [(f.name, f.type, f) for f in dataclasses.fields(record)]
                twin = dataclasses.make_dataclass(record.__name__, fields, init=False, frozen=self._frozen)
                for other in self._names:
                    if other != "__init__":
                        setattr(record, other, vars(twin)[other])
        return vars(record)[name].__get__(instance, owner)


def _init(record: type, frozen: bool) -> Any:
    """Compile the one method that most classes need: what the standard decorator makes, 0.5 ms sooner."""
    known: dict[str, Any] = {"_set": object.__setattr__, "_absent": object()}
    given: dict[bool, list[str]] = {False: ["self"], True: []}  # by whether it is a keyword alone
    lines = ["pass"]
    for f in dataclasses.fields(record):
        name, value, default = f.name, f.name, ""
        if f.default_factory is not dataclasses.MISSING:
            known[f"_make_{name}"], default = f.default_factory, "=_absent"
            value = f"_make_{name}() if {name} is _absent else {name}"
        elif f.default is not dataclasses.MISSING:
            known[f"_default_{name}"], default = f.default, f"=_default_{name}"
        elif not f.init:
            continue
        if f.init:
            given[f.kw_only is True].append(name + default)
        else:
            value = f"_make_{name}()" if default == "=_absent" else default[1:]
        lines.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(record, "__post_init__"):
        lines.append("self.__post_init__()")
    alone = ["*", *given[True]] if given[True] else []
    exec(f"def __init__({', '.join([*given[False], *alone])}):\n " + "\n ".join(lines), known)
    made = known["__init__"]
    made.__qualname__, made.__module__ = f"{record.__qualname__}.__init__", record.__module__
    made.__annotations__ = {**{f.name: f.type for f in dataclasses.fields(record)}, "return": None}
    return made


def _refuse_to_set(self: Any, name: str, value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in dataclasses.fields(self)]


def _restore(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
