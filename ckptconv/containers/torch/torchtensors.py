"""Turn the persistent ids and rebuild calls of a torch pickle into located tensors.

The calls are those of torch 2.13, ``torch/_utils.py`` and ``torch/_tensor.py``. What is not a plain strided
tensor (quantized, sparse, nested, meta, wrapper subclasses) stays a record of its call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.picklevm import Global, Hook, Record, short
from ckptconv.dtypes import BY_NAME, BY_TORCH_STORAGE, DType
from ckptconv.errors import FormatError

__all__ = ["FileStorage", "TensorHooks", "is_tensor_record", "storage_dtype"]

_MAX_DIMS: Final = 64  # as in torch
_MAX_BYTES: Final = 1 << 62
_BYTES = BY_NAME["uint8"]
_PARAMETERS: Final = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_TYPED_MODULES: Final = ("torch", "torch.cuda", "torch.storage")
_UNTYPED: Final = ("UntypedStorage", "_UntypedStorage")


@dataclass(frozen=True, slots=True)
class FileStorage:
    """Locate a torch storage in a file.

    Attributes:
        key: What the pickle calls it.
        dtype: Element type; ``None`` for an untyped storage.
        offset: Byte position in the file.
        nbytes: Length; of a part where it is a view (legacy files).
        whole: Position and length of the storage it is a view of, or its own.
    """

    key: str
    dtype: DType | None
    offset: int
    nbytes: int
    whole: tuple[int, int]


def storage_dtype(cls: object) -> DType | None:
    """Return the element type of a storage class, ``None`` for an untyped one.

    Raises:
        FormatError: for any other class, and for storages of types that are not in the table.
    """
    if type(cls) is Global and cls.module in _TYPED_MODULES:
        if cls.name in _UNTYPED:
            return None
        if cls.name in BY_TORCH_STORAGE:
            return BY_TORCH_STORAGE[cls.name]
    name = cls.qualified if type(cls) is Global else type(cls).__name__
    raise FormatError(f"a storage of the unknown type {short(name)}")


def is_tensor_record(value: object) -> bool:
    """Whether ``value`` stands for a tensor of a kind that cannot be located."""
    return type(value) is Record and value.cls.startswith(("torch._utils._rebuild", "torch._tensor._rebuild"))


class TensorHooks:
    """Make tensors of rebuild calls, and count them.

    Args:
        path: The file.
        resolve: Gives the storage a persistent id names.
        exact: Whether parameters and tensors of subclasses stay records of their calls.
    """

    __slots__ = ("_path", "count", "hooks", "resolve")

    def __init__(self, path: str, resolve: Callable[[object], object], exact: bool = False) -> None:
        self._path = path
        self.count = 0
        self.resolve = resolve
        self.hooks: dict[str, Hook]
        plain: dict[str, Hook] = {
            "torch._utils._rebuild_tensor": self._rebuild,
            "torch._utils._rebuild_tensor_v2": self._rebuild,
            "torch._utils._rebuild_tensor_v3": self._rebuild_v3,
        }
        if exact:
            self.hooks = plain
            return
        plain |= {name: _first(name) for name in _PARAMETERS}

        def from_type(args: tuple[object, ...]) -> object:
            """Read ``_rebuild_from_type_v2(func, type, args, state)``: the tensor without its attributes."""
            if len(args) == 4 and type(args[0]) is Global and type(args[2]) is tuple:
                hook = plain.get(args[0].qualified)
                if hook is not None:
                    return hook(args[2])
            return Record("torch._tensor._rebuild_from_type_v2", args)

        self.hooks = {**plain, "torch._tensor._rebuild_from_type_v2": from_type}

    def _rebuild(self, args: tuple[object, ...]) -> FileTensor:
        if not 4 <= len(args) <= 7:
            raise FormatError(f"a tensor is rebuilt from {len(args)} arguments")
        if len(args) == 7:
            _check_metadata(args[6])
        storage = args[0]
        dtype = storage.dtype if type(storage) is FileStorage else None
        return self._locate(storage, dtype or _BYTES, *args[1:4])

    def _rebuild_v3(self, args: tuple[object, ...]) -> FileTensor:
        if not 7 <= len(args) <= 8:
            raise FormatError(f"a tensor is rebuilt from {len(args)} arguments")
        if len(args) == 8:
            _check_metadata(args[7])
        kind = args[6]
        if type(kind) is not Global or kind.module != "torch" or kind.name not in BY_NAME:
            name = kind.qualified if type(kind) is Global else type(kind).__name__
            raise FormatError(f"a tensor of the unknown type {short(name)}")
        return self._locate(args[0], BY_NAME[kind.name], *args[1:4])

    def _locate(self, storage: object, dtype: DType, *view: Any) -> FileTensor:
        if type(storage) is not FileStorage:
            raise FormatError(f"a tensor is rebuilt on a {type(storage).__name__}, not on a storage")
        offset, shape, stride = view
        if not (_is_sizes(shape) and _is_sizes(stride) and _is_sizes((offset,))) or len(shape) != len(stride):
            raise FormatError(
                f"a tensor on storage {short(storage.key)} has a shape, stride or offset that is none"
            )
        count = prod(shape)
        room = storage.nbytes // dtype.itemsize
        if count:
            last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            if last >= room or count * dtype.itemsize > _MAX_BYTES:
                raise FormatError(
                    f"a tensor needs element {last:,} of storage {short(storage.key)}, which has {room:,}"
                )
        elif offset > room:
            offset = 0
        self.count += 1
        at = storage.offset + offset * dtype.itemsize
        return FileTensor(dtype, shape, stride, self._path, at, storage.whole)


def _first(name: str) -> Hook:
    def keep(args: tuple[object, ...]) -> object:
        """Read a parameter as its data."""
        return args[0] if args and type(args[0]) is FileTensor else Record(name, args)

    return keep


def _is_sizes(values: object) -> bool:
    return (
        type(values) is tuple
        and len(values) <= _MAX_DIMS
        and all(type(n) is int and 0 <= n < _MAX_BYTES for n in values)
    )


def _check_metadata(metadata: object) -> None:
    """Refuse views whose numbers differ from the stored ones (conjugate and negative bits)."""
    if metadata is not None and (type(metadata) is not dict or any(metadata.values())):
        raise FormatError("a conjugated or negated view of a tensor; save it with .resolve_conj()")
