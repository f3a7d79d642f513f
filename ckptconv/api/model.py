"""Open checkpoints as named tensors, and read them one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import DType, numpy_dtype
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import UsageError
from ckptconv.places.files import SourceFiles
from ckptconv.places.places import PathArg, place
from ckptconv.planning.decode import noted
from ckptconv.planning.plan import open_like, plan_checkpoint
from ckptconv.planning.request import about_source, request_of
from ckptconv.plans.assemble import plan_of
from ckptconv.plans.casting import cast_chains
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import OutFile
from ckptconv.readers.registry import open_checkpoint
from ckptconv.relations import Pair, Relation
from ckptconv.relations.terms import Terms, concerning, operands

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Model", "TensorInfo", "open"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Describe one tensor: shape, dtype, size in bytes, and the files its elements lie in."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    files: tuple[str, ...]


class Model(Mapping[str, TensorInfo]):
    """A checkpoint seen as named tensors; data is read when it is asked for.

    Attributes:
        checkpoint: What the reader found.
        relation: Stored tensors to these tensors.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        relation: Relation,
        casts: Mapping[str, tuple[DType, ...]],
        terms: Terms = MappingProxyType({}),
    ) -> None:
        self.checkpoint = checkpoint
        self.relation = relation
        self._casts, self._terms = casts, terms
        self._parts = operands(terms)
        self._pairs: dict[str, list[Pair]] | None = None

    @property
    def tensors(self) -> Model:
        """The tensors by name (the model itself is that mapping)."""
        return self

    def __iter__(self) -> Iterator[str]:
        return (n for n in self.relation.right if n not in self._parts)

    def __len__(self) -> int:
        return len(self.relation.right) - len(self._parts)

    def __getitem__(self, name: str) -> TensorInfo:
        if name in self._parts:
            raise KeyError(name)
        spec = self.relation.right[name]
        d = dtype_named(spec.dtype)
        if self._pairs is None:
            from ckptconv.engine.fill import pairs_by_tensor

            self._pairs = pairs_by_tensor(self.relation)
        parts = (name, *operands(self._terms, [name]))
        keys = {p.left.tensor for n in parts for p in self._pairs.get(n, ())}
        paths = {p for k in keys for p in self.checkpoint.stored[k].paths()}
        return TensorInfo(name, spec.shape, d, spec.numel * d.itemsize, tuple(sorted(paths)))

    def to(self, target: str = "hf", **fields: Any) -> Model:
        """Return the same tensors under the target's names and dtypes; nothing is read.

        Args:
            target: Any target, such as ``hf``; ranks' tensors are named ``FOLDER:CHUNK:NAME``.
            **fields: Options of the target, such as ``dtype`` or ``tp``, as in `ckptconv.plan`.

        Raises:
            UsageError: if an option is unknown, says nothing to this target, or is about the source: that is
                for `open`.
            PlanError: as `ckptconv.plan` does.
        """
        request = request_of({"assets": False, **fields, "to": target})
        if request.reading:
            named = ", ".join(request.reading)
            raise UsageError(f"{named} is about the source", hint="give it to ckptconv.open")
        made = plan_checkpoint(self.checkpoint, request, open_like(request))
        read = replace(self.checkpoint, stored=made.stored, files=made.inputs, settle=None)
        return Model(read, made.relation, made.casts, made.terms)

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Read one tensor now, as a numpy array of its shape (``ml_dtypes`` for bfloat16).

        Raises:
            KeyError: if there is no such tensor.
            MismatchError: if replicas of it differ.
        """
        from ckptconv.engine.buffers import Buffers
        from ckptconv.engine.fill import Filler, pairs_by_tensor

        info = self[name]
        layout = FileLayout(info.nbytes, (), (Placed(name, info.dtype, info.shape, 0),))
        file = OutFile(name, "safetensors", layout)
        terms = concerning(self._terms, [name])
        relation = self.relation.select([name, *operands(terms)])
        one = plan_of(self.checkpoint, relation, self._casts, (file,), terms)
        with SourceFiles(self.checkpoint.files) as sources:
            filler = Filler(one, file, sources, pairs_by_tensor(one.relation))
            data, _, _ = filler.fill(0, info.nbytes, Buffers())
        return data.view(numpy_dtype(info.dtype)).reshape(info.shape)


def open(path: PathArg, **fields: Any) -> Model:  # noqa: A001  (the API's name)
    """Open any checkpoint; only metadata is read.

    Args:
        path: A run's folder, a step's, a Hugging Face folder, or a file inside one.
        **fields: What is said about it, as its reader takes it: ``weights`` (``master`` or ``model``),
            ``step``, ``tp``, ``strategy`` and others.

    Raises:
        FormatError: if it is damaged or not a checkpoint.
        PlanError: if parts are missing or disagree.
        UsageError: if something is said that such a checkpoint does not understand.
    """
    checkpoint = noted(open_checkpoint(place(path), about_source(fields)))
    relation = checkpoint.relation
    return Model(checkpoint, relation, cast_chains(checkpoint, relation, checkpoint.via))
