"""Turn the persistent ids and rebuild calls of a torch pickle into located tensors.

The calls are those of torch 2.13, ``torch/_utils.py`` and ``torch/_tensor.py``, and that of torch_npu
(Ascend 00f3177b, ``torch_npu/utils/storage.py``), which pickles every tensor that lies on an NPU as a call of
its own on the plain storage of a CPU copy. What is no plain strided tensor (quantized, sparse, conjugated, of
an unknown type, a wrapper subclass) stays a record of its call: beside the weights it does no harm, and
whoever wants it as a weight refuses it with the reason :func:`odd_tensor` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from os import PathLike
from typing import Any, Final

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.picklevm import Global, Hook, Record, short
from ckptconv.dtypes import BY_NAME, BY_TORCH_STORAGE, DType
from ckptconv.errors import FormatError
from ckptconv.records import dataclass

__all__ = ["FileStorage", "TensorHooks", "odd_tensor", "refuse_odd", "storage_dtype"]

_MAX_DIMS: Final = 64  # as in torch
_MAX_BYTES: Final = 1 << 62
_BYTES = BY_NAME["uint8"]
_PARAMETERS: Final = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_TYPED_MODULES: Final = ("torch", "torch.cuda", "torch.storage")
_UNTYPED: Final = ("UntypedStorage", "_UntypedStorage")
# Storages of quantised tensors, whose values are not those stored, by bytes of an element.
_ODD_STORAGES: Final = {
    "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip
# What torch_npu says of a tensor's format where it uses torch's own call: names that are all true (Ascend,
# ``torch_npu/csrc/framework/StorageDescHelper.cpp``, ``GetDescForSerialization``). The storage is plain.
_NPU_NOTES: Final = ("base_sizes_/", "base_strides_/", "storage_sizes_/", "origin_format_/", "npu_format_/")
_FROM_TYPE: Final = "torch._tensor._rebuild_from_type_v2"
_V3: Final = "torch._utils._rebuild_tensor_v3"
# Calls that make a plain tensor of a storage, and how many arguments each takes. The last of torch's v2 and
# v3 are the marks; that of torch_npu is the format on the device, which the stored numbers do not have.
_PLAIN: Final = {
    "torch._utils._rebuild_tensor": (4, 7),
    "torch._utils._rebuild_tensor_v2": (4, 7),
    _V3: (7, 8),
    "torch_npu.utils.storage._rebuild_npu_tensor": (4, 7),
    "torch_npu.utils.tensor_methods._rebuild_npu_tensor": (4, 7),
}
# What else torch rebuilds, in words.
_OTHERS: Final = {
    f"torch._utils._rebuild_{call}": what
    for call, what in {
        "qtensor": "quantised",
        "sparse_tensor": "sparse",
        "sparse_csr_tensor": "sparse",
        "nested_tensor": "nested",
        "meta_tensor_no_storage": "of the meta device, without data",
        "wrapper_subclass": "of a subclass, without data",
        "device_tensor_from_numpy": "of another device, inside the pickle",
        "xla_tensor": "of another device, inside the pickle",
    }.items()
}
_FROM_CPU: Final = "torch._utils._rebuild_device_tensor_from_cpu_tensor"


@dataclass(frozen=True, slots=True)
class FileStorage:
    """Locate a torch storage in a file.

    Attributes:
        key: What the pickle calls it.
        dtype: Element type; ``None`` for an untyped storage.
        offset: Byte position in the file.
        nbytes: Length; of a part where it is a view (legacy files).
        whole: Position and length of the storage it is a view of, or its own.
        odd: Name of its class where that is one of quantised values.
    """

    key: str
    dtype: DType | None
    offset: int
    nbytes: int
    whole: tuple[int, int]
    odd: str | None = None


def storage_dtype(cls: object) -> tuple[DType | None, int, str | None]:
    """Return a storage class's element type (None if untyped), bytes of an element, and its name if odd.

    Raises:
        FormatError: for any other class.
    """
    if type(cls) is Global and cls.module in _TYPED_MODULES:
        if cls.name in _UNTYPED:
            return None, 1, None
        if cls.name in BY_TORCH_STORAGE:
            dtype = BY_TORCH_STORAGE[cls.name]
            return dtype, dtype.itemsize, None
        if cls.name in _ODD_STORAGES:
            return None, _ODD_STORAGES[cls.name], cls.name
    name = cls.qualified if type(cls) is Global else type(cls).__name__
    raise FormatError(f"a storage of the unknown type {short(name)}")


def odd_tensor(value: object) -> str | None:
    """Say what kind of tensor a value is if it is one that cannot be located, else None."""
    if type(value) is not Record or not value.callee.name.startswith("_rebuild"):
        return None
    if value.cls in _PARAMETERS and value.args:
        return odd_tensor(value.args[0])
    call, args = value.cls, value.args
    if call == _FROM_TYPE and len(args) == 4 and type(args[0]) is Global and type(args[2]) is tuple:
        call, args, kind = args[0].qualified, args[2], args[1]
        if call not in _PLAIN:
            return f"a {kind.qualified if type(kind) is Global else 'tensor'}, rebuilt by {short(call)}"
    if call in _PLAIN:
        return _why_odd(call, args)
    if call in _OTHERS:
        return _OTHERS[call]
    return f"rebuilt by {short(call)}, which is not known"


def refuse_odd(name: str, value: object, where: str | PathLike[str] | None = None) -> None:
    """Refuse a weight that is a tensor of a kind that cannot be located.

    Raises:
        FormatError: if it is.
    """
    why = odd_tensor(value)
    if why is not None:
        raise FormatError(
            f"the tensor {short(name)} is not a plain one: {why}",
            where=where,
            hint="load it, and save it as a dense tensor on the CPU (of a view, .resolve_conj().clone())",
        )


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
        plain: dict[str, Hook] = {name: partial(self._rebuild, name) for name in _PLAIN}
        if exact:
            self.hooks = plain
            return
        plain |= {name: _first(name) for name in _PARAMETERS}
        plain[_FROM_CPU] = _from_cpu

        def from_type(args: tuple[object, ...]) -> object:
            """Read ``_rebuild_from_type_v2(func, type, args, state)``: the tensor without its attributes."""
            if len(args) == 4 and type(args[0]) is Global and type(args[2]) is tuple:
                hook = plain.get(args[0].qualified)
                made = hook(args[2]) if hook is not None else None
                if type(made) is FileTensor:
                    return made
            return Record(_FROM_TYPE, args)

        self.hooks = {**plain, _FROM_TYPE: from_type}

    def _rebuild(self, name: str, args: tuple[object, ...]) -> FileTensor | Record:
        fewest, most = _PLAIN[name]
        if not fewest <= len(args) <= most:
            raise FormatError(f"a tensor is rebuilt from {len(args)} arguments")
        if type(args[0]) is not FileStorage:
            raise FormatError(f"a tensor is rebuilt on a {type(args[0]).__name__}, not on a storage")
        if _why_odd(name, args) is not None:
            return Record(name, args)
        dtype = BY_NAME[args[6].name] if name == _V3 else args[0].dtype  # type: ignore[attr-defined]
        return self._locate(args[0], dtype or _BYTES, *args[1:4])

    def _locate(self, storage: FileStorage, dtype: DType, *view: Any) -> FileTensor:
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


def _from_cpu(args: tuple[object, ...]) -> object:
    """Read ``_rebuild_device_tensor_from_cpu_tensor(data, dtype, device, requires_grad)``, of XLA."""
    if len(args) == 4 and type(args[0]) is FileTensor and args[1] == Global("torch", args[0].dtype.name):
        return args[0]
    return Record(_FROM_CPU, args)


def _is_sizes(values: object) -> bool:
    return (
        type(values) is tuple
        and len(values) <= _MAX_DIMS
        and all(type(n) is int and 0 <= n < _MAX_BYTES for n in values)
    )


def _why_odd(call: str, args: tuple[object, ...]) -> str | None:
    """Say why a call of a known function makes no plain tensor; None if it makes one.

    Two bits of a view make its numbers others than those stored (conjugate and negative); they are told in a
    dict at the end, together with what a backend says of its own.
    """
    storage = args[0] if args else None
    if type(storage) is FileStorage and storage.odd is not None:
        return f"quantised, in a {storage.odd}"
    if call == _V3:
        kind = args[6] if len(args) > 6 else None
        if type(kind) is not Global or kind.module != "torch" or kind.name not in BY_NAME:
            name = kind.qualified if type(kind) is Global else type(kind).__name__
            return f"of the unknown type {short(name)}"
    last = args[_PLAIN[call][1] - 1 :]
    if call.startswith("torch_npu.") or not last or not last[0]:
        return None
    if type(last[0]) is not dict:
        return f"with a {type(last[0]).__name__} where its marks are told"
    marks = [str(k) for k, v in last[0].items() if v and not str(k).startswith(_NPU_NOTES)]
    if not marks:
        return None
    if {"conj", "neg"}.issuperset(marks):
        return "a conjugated or negated view"
    return f"marked {short(', '.join(marks))}, which is not known"
