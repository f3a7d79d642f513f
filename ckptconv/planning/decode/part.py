"""Say which tensors of a checkpoint one quantised weight is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from math import prod
from typing import Any

from ckptconv.errors import PlanError
from ckptconv.planning.decode.says import Says
from ckptconv.records import dataclass
from ckptconv.relations import Spec

__all__ = ["COPY", "Given", "Part", "matrix", "refuse"]

COPY = "copy every file of the quantised model; codes without their scales are no weights"


@dataclass(frozen=True, slots=True)
class Part:
    """Relate a weight to what it is stored as.

    Attributes:
        name: The weight.
        shape: Its shape.
        dtype: The type its values are rounded to unless another is asked for.
        kind: How it is quantised, in words.
        codec: The codec's name.
        params: What that has to know.
        operands: The tensor of each role, and the rows and columns it is seen as.
        order: The axes of the weight in the order in which its values are computed; None for its own.
        read: Tensors that only say something of it, and are read when it is planned.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    codec: str
    params: Mapping[str, Any]
    operands: Mapping[str, tuple[str, tuple[int, int]]]
    order: tuple[int, ...] | None = None
    read: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """The tensors without any of which the weight is not what it was."""
        return (*(name for name, _ in self.operands.values()), *self.read)


@dataclass(frozen=True, slots=True)
class Given:
    """Hold what parts are found in.

    Attributes:
        tensors: All tensors.
        says: What the files beside them say.
        content: Returns the bytes of a small tensor.
        left: Tensors not yet understood.
    """

    tensors: Mapping[str, Spec]
    says: Says
    content: Callable[[str], bytes]
    left: dict[str, None] = field(default_factory=dict)

    def need(self, name: str, *, of: str) -> Spec:
        """Return a tensor that another cannot do without.

        Raises:
            PlanError: if it is not there.
        """
        if name not in self.tensors:
            raise PlanError(f"{of} is quantised, but {name} is not in the checkpoint", hint=COPY)
        return self.tensors[name]


def refuse(name: str, spec: Spec, wanted: object) -> PlanError:
    """Return the refusal of a tensor of another shape."""
    return PlanError(
        f"{name} is {spec.dtype}{list(spec.shape)}, where {wanted} is needed",
        hint="the files are of another model, or quantised in a layout that is not known: compare them with "
        "the model's quantization_config",
    )


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """See a tensor as the rows of its last axis."""
    return prod(shape[:-1]), shape[-1] if shape else 1
