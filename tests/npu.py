"""Save tensors as torch_npu pickles those on an NPU (Ascend 00f3177b, ``torch_npu/utils/storage.py``)."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MODULE = "torch_npu.utils.storage"


class Format:
    """What the newest release tells the format with, an enum there."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Format, (self.value,)


Format.__module__ = "torch_npu.npu._format"


def _rebuild_npu_tensor(*args: Any) -> None:
    raise AssertionError("a file was run")


_rebuild_npu_tensor.__module__ = MODULE


def save_as_npu(value: object, path: Path, *, mark: object = 2, zipped: bool = True) -> Path:
    """Save a value with ``torch.save``, its tensors as calls of torch_npu's own function.

    Args:
        value: What to save.
        path: The file.
        mark: The last argument of the call.
        zipped: Which container of torch.
    """

    def reduce(tensor: torch.Tensor) -> tuple[Any, ...]:
        storage = tensor.detach()._typed_storage()
        where = (tensor.storage_offset(), tuple(tensor.size()), tensor.stride())
        return _rebuild_npu_tensor, (storage, *where, False, OrderedDict(), mark)

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            return reduce(obj) if type(obj) is torch.Tensor else NotImplemented

    _save(value, path, Pickler, zipped)
    return path


def save_with_marks(value: object, path: Path, marks: dict[str, bool]) -> Path:
    """Save a value as releases do that use torch's own call, whose last argument is their notes."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is not torch.Tensor:
                return NotImplemented
            func, args = obj.__reduce_ex__(2)
            return func, (*args, marks)

    _save(value, path, Pickler, True)
    return path


def _save(value: object, path: Path, pickler: type, zipped: bool) -> None:
    modules: dict[str, Any] = {}
    for name, made in ((MODULE, _rebuild_npu_tensor), ("torch_npu.npu._format", Format)):
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
        setattr(modules[name], made.__name__, made)
    before: dict[str, Callable[..., Any] | None] = {n: sys.modules.get(n) for n in modules}  # type: ignore[misc]
    sys.modules.update(modules)
    try:
        as_module = types.SimpleNamespace(
            __name__="npu", Pickler=pickler, dumps=pickle.dumps, dump=pickle.dump
        )
        torch.save(value, path, pickle_module=as_module, _use_new_zipfile_serialization=zipped)
    finally:
        for n, old in before.items():
            sys.modules.pop(n) if old is None else sys.modules.__setitem__(n, old)  # type: ignore[arg-type]
