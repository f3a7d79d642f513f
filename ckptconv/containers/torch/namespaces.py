"""Read training arguments out of an inert ``argparse.Namespace``, and make a new one to be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ckptconv.containers.torch.picklevm import Global, Record
from ckptconv.dtypes import BY_NAME
from ckptconv.errors import FormatError
from ckptconv.records import dataclass

__all__ = ["EnumValue", "namespace", "plain"]

_NAMESPACES: Final = ("argparse.Namespace", "types.SimpleNamespace")
_MAX_DEPTH: Final = 100
# Other classes of the libraries that are pickled as a call with one value.
_NOT_ENUMS: Final = frozenset({
    "__builtin__", "builtins", "_codecs", "_io", "collections", "copy_reg", "copyreg", "datetime", "decimal",
    "fractions", "functools", "io", "numpy", "operator", "pathlib", "torch", "uuid",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class EnumValue:
    """Give a member of an enum by its class and value; its name is known to the class alone.

    Attributes:
        cls: Dotted name of the class, for example ``"megatron.core.enums.ModelType"``.
        value: What the member stands for.
    """

    cls: str
    value: int | str


def namespace(attributes: Mapping[str, object]) -> Record:
    """Return an ``argparse.Namespace`` as `ckptconv.containers.torch.torchbin.layout_tree` writes it."""
    return Record("argparse.Namespace", state=dict(attributes), form="new", module="argparse")


def plain(value: object) -> Any:
    """Turn training arguments into simple values.

    A namespace becomes a dict of its attributes, a torch dtype its short name (``"bfloat16"``), an enum an
    :class:`EnumValue`; dicts, lists and tuples are gone through, and numbers, strings, None and all else are
    left as they are. What is one list or dict stays one.

    Raises:
        FormatError: if it holds itself, or has more than 100 levels.
    """
    return _plain(value, {}, 0)


def _plain(value: object, done: dict[int, object], depth: int) -> object:
    if type(value) is Global:
        return value.name if value.module == "torch" and value.name in BY_NAME else value
    if type(value) is Record and _is_enum(value):
        return EnumValue(value.cls, value.args[0])  # type: ignore[arg-type]
    inner: object = value
    if type(value) is Record and value.cls in _NAMESPACES and not value.args:
        inner = {} if value.state is None else value.state
    if not isinstance(inner, (dict, list, tuple)):
        return value
    made = done.get(id(value))
    if made is not None:
        return made
    if id(value) in done or depth >= _MAX_DEPTH:
        raise FormatError(f"arguments that hold themselves, or of more than {_MAX_DEPTH} levels")
    done[id(value)] = None  # not finished
    if isinstance(inner, dict):
        made = {k: _plain(v, done, depth + 1) for k, v in inner.items()}
    else:
        made = [_plain(v, done, depth + 1) for v in inner]
        made = tuple(made) if isinstance(inner, tuple) else made
    done[id(value)] = made
    return made


def _is_enum(value: Record) -> bool:
    """Whether it is pickled as an ``enum.Enum`` is: a call of the class with the value, and no more.

    The call: CPython 3.11, ``Lib/enum.py`` (``Enum.__reduce_ex__``).
    """
    return (
        value.form == "call"
        and len(value.args) == 1
        and type(value.args[0]) in (int, str)
        and not (value.kwargs or value.items or value.entries or value.state)
        and value.callee.module.partition(".")[0] not in _NOT_ENUMS
    )


def harmless(value: Any) -> Any:
    """Keep simple values, element types and enums; others would be called on loading."""
    if isinstance(value, Record) and value.cls == "argparse.Namespace" and isinstance(value.state, dict):
        return namespace({k: harmless(v) for k, v in value.state.items()})
    if isinstance(value, (list, tuple)):
        return type(value)(harmless(v) for v in value)
    if isinstance(value, dict):
        return {k: harmless(v) for k, v in value.items()}
    if isinstance(value, (bool, int, float, str, type(None))) or isinstance(plain(value), (str, EnumValue)):
        return value
    return None
