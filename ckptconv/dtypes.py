"""Hold the one table of element types: name, size, and what each container calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ckptconv.records import dataclass

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BY_NAME", "BY_SAFETENSORS", "BY_TORCH_STORAGE", "DType", "dtype", "numpy_dtype"]

Kind = Literal["float", "int", "bool", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """Describe an element type.

    Attributes:
        name: The torch name without its prefix, for example ``"bfloat16"``.
        itemsize: Bytes per element.
        kind: ``float``, ``int``, ``bool`` or ``complex``. Only ``float`` is ever cast.
        safetensors: The code in a safetensors header (safetensors 0.8, ``tensor.rs``), if it has one.
        torch_storage: The typed storage class in a torch pickle (torch 2.13, ``torch/storage.py``),
            if it has one; other types are stored under ``torch.storage.UntypedStorage``.
    """

    name: str
    itemsize: int
    kind: Kind
    safetensors: str | None = None
    torch_storage: str | None = None

    def __str__(self) -> str:
        return self.name


_TABLE = (
    DType("float64", 8, "float", "F64", "DoubleStorage"),
    DType("float32", 4, "float", "F32", "FloatStorage"),
    DType("float16", 2, "float", "F16", "HalfStorage"),
    DType("bfloat16", 2, "float", "BF16", "BFloat16Storage"),
    DType("float8_e4m3fn", 1, "float", "F8_E4M3"),
    DType("float8_e5m2", 1, "float", "F8_E5M2"),
    DType("float8_e8m0fnu", 1, "float", "F8_E8M0"),
    DType("float8_e4m3fnuz", 1, "float", "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 1, "float", "F8_E5M2FNUZ"),
    DType("int64", 8, "int", "I64", "LongStorage"),
    DType("int32", 4, "int", "I32", "IntStorage"),
    DType("int16", 2, "int", "I16", "ShortStorage"),
    DType("int8", 1, "int", "I8", "CharStorage"),
    DType("uint64", 8, "int", "U64"),
    DType("uint32", 4, "int", "U32"),
    DType("uint16", 2, "int", "U16"),
    DType("uint8", 1, "int", "U8", "ByteStorage"),
    DType("bool", 1, "bool", "BOOL", "BoolStorage"),
    DType("complex64", 8, "complex", "C64", "ComplexFloatStorage"),
    DType("complex128", 16, "complex", None, "ComplexDoubleStorage"),
)

BY_NAME = {d.name: d for d in _TABLE}
BY_SAFETENSORS = {d.safetensors: d for d in _TABLE if d.safetensors}
BY_TORCH_STORAGE = {d.torch_storage: d for d in _TABLE if d.torch_storage}

_ALIASES = {"half": "float16", "float": "float32", "double": "float64", "fp32": "float32",
            "fp16": "float16", "bf16": "bfloat16", "long": "int64", "int": "int32"}  # fmt: skip


def dtype(name: str) -> DType:
    """Look up an element type by its torch name, with or without ``torch.``, or a common alias.

    Raises:
        KeyError: if no such type exists.
    """
    bare = name.removeprefix("torch.")
    return BY_NAME[_ALIASES.get(bare, bare)]


def numpy_dtype(d: DType) -> np.dtype[Any]:
    """Return the numpy dtype that does arithmetic on ``d`` (``ml_dtypes`` for the small floats)."""
    import numpy as np

    if d.name == "bfloat16" or d.name.startswith("float8"):
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, d.name))
        return found
    return np.dtype(d.name)
