"""Open checkpoints as named tensors, and read them one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, overload

from ckptconv.api.words import pythonic
from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import DType, numpy_dtype
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError, UsageError
from ckptconv.numbers.sizes import size_text
from ckptconv.places.files import SourceFiles
from ckptconv.places.places import PathArg, place
from ckptconv.planning.decode import noted
from ckptconv.planning.model import find_architecture
from ckptconv.planning.request import about_source, request_of
from ckptconv.plans.casting import cast_chains
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import OutFile
from ckptconv.plans.shown import Shown, count
from ckptconv.readers.registry import open_checkpoint
from ckptconv.records import dataclass
from ckptconv.relations import Pair, Relation
from ckptconv.relations.terms import Terms, concerning, operands

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

_NEAR = 0.8  # names of tensors are alike: what is less so is another one

__all__ = ["Model", "TensorInfo", "open"]


@dataclass(frozen=True, slots=True, repr=False)
class TensorInfo(Shown):
    """Describe one tensor: shape, dtype, size in bytes, and the files its elements lie in."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    files: tuple[str, ...]

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        more = len(self.files) - 1
        return {
            "name": self.name,
            "shape": self.shape,
            "dtype": self.dtype,
            "size": size_text(self.nbytes),
            "in": "".join(self.files[:1]) + (f" and {count(more, 'more file')}" if more > 0 else ""),
        }


class UnknownTensorError(KeyError):
    """Say that there is no tensor of a name, and which are the nearest: looked for when it is shown."""

    def __init__(self, name: object, known: Iterable[str]) -> None:
        super().__init__(name)
        self._known = known

    def __str__(self) -> str:
        close = get_close_matches(str(self.args[0]), list(self._known), 3, _NEAR)
        did = f"; did you mean {' or '.join(close)}?" if close else ""
        return f"there is no tensor {self.args[0]!r}{did}"


class Model(Mapping[str, TensorInfo], Shown):
    """A checkpoint seen as named tensors; data is read when it is asked for.

    Attributes:
        checkpoint: What the reader found.
        relation: Stored tensors to these tensors.
    """

    __repr__ = Shown.__repr__

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

    def rows(self) -> Mapping[str, object]:
        """Return what is worth seeing."""
        found = self.checkpoint
        spec = self.relation.right
        dtypes = Counter(spec[n].dtype for n in self)
        return {
            "root": found.root,
            "producer": found.producer,
            "format": found.format,
            "step": self.step,
            "layout": ", ".join(f"{k} {v}" for k, v in self.layout.items()),
            "tensors": f"{len(self):,} ({', '.join(f'{n} {d}' for d, n in dtypes.items())})",
            "parameters": f"{sum(spec[n].numel for n in self if n not in found.buffers):,}",
        }

    @property
    def step(self) -> int | None:
        """The training step, where it is known."""
        return self.checkpoint.iteration

    @property
    def layout(self) -> Mapping[str, Any]:
        """Parallel sizes and the like, by name."""
        return self.checkpoint.layout

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What config.json says or would say: found beside it, or built; None where neither can be."""
        try:
            found = find_architecture(self.checkpoint, request_of({"to": "hf"}), needed=False).config
        except PlanError:
            return None
        return None if found is None else found.values

    @property
    def tensors(self) -> Model:
        """The tensors by name (the model itself is that mapping)."""
        return self

    def __iter__(self) -> Iterator[str]:
        return (n for n in self.relation.right if n not in self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self.relation.right and name not in self._parts

    def __len__(self) -> int:
        return len(self.relation.right) - len(self._parts)

    def __getitem__(self, name: str) -> TensorInfo:
        if name not in self:
            raise UnknownTensorError(name, self)
        spec = self.relation.right[name]
        d = dtype_named(spec.dtype)
        if self._pairs is None:
            from ckptconv.engine.fill import pairs_by_tensor

            self._pairs = pairs_by_tensor(self.relation)
        parts = (name, *operands(self._terms, [name]))
        keys = {p.left.tensor for n in parts for p in self._pairs.get(n, ())}
        paths = {p for k in keys for p in self.checkpoint.stored[k].paths()}
        return TensorInfo(name, spec.shape, d, spec.numel * d.itemsize, tuple(sorted(paths)))

    @pythonic
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
        from ckptconv.planning.plan import open_like, plan_checkpoint

        request = request_of({"assets": False, **fields, "to": target})
        if request.reading:
            named = ", ".join(request.reading)
            raise UsageError(f"{named} is about the source", hint="give it to ckptconv.open")
        made = plan_checkpoint(self.checkpoint, request, open_like(request))
        read = replace(self.checkpoint, stored=made.stored, files=made.inputs, settle=None)
        return Model(read, made.relation, made.casts, made.terms)

    @overload
    def read(self, name: str, framework: Literal["np"] = "np") -> npt.NDArray[np.generic]: ...

    @overload
    def read(self, name: str, framework: Literal["pt"]) -> torch.Tensor: ...

    @pythonic
    def read(self, name: str, framework: str = "np") -> Any:
        """Read one tensor now, in its shape and element type.

        Args:
            name: Its name.
            framework: ``np`` for a numpy array, with types of ``ml_dtypes`` where numpy has none (bfloat16),
                or ``pt`` for a tensor of torch, which has to be installed.

        Raises:
            KeyError: if there is no such tensor; it names the nearest.
            MismatchError: if replicas of it differ.
            UsageError: if there is no such framework.
        """
        if framework not in ("np", "pt"):
            raise UsageError(f"there is no framework {framework!r}", hint='give framework="np" or "pt"')
        from ckptconv.engine.buffers import Buffers
        from ckptconv.engine.fill import Filler, pairs_by_tensor
        from ckptconv.plans.assemble import plan_of

        info = self[name]
        layout = FileLayout(info.nbytes, (), (Placed(name, info.dtype, info.shape, 0),))
        file = OutFile(name, "safetensors", layout)
        terms = concerning(self._terms, [name])
        relation = self.relation.select([name, *operands(terms)])
        one = plan_of(self.checkpoint, relation, self._casts, (file,), terms)
        with SourceFiles(self.checkpoint.files) as sources:
            filler = Filler(one, file, sources, pairs_by_tensor(one.relation))
            data, _, _ = filler.fill(0, info.nbytes, Buffers())
        if framework == "np":
            return data.view(numpy_dtype(info.dtype)).reshape(info.shape)
        import torch

        return torch.from_numpy(data).view(getattr(torch, info.dtype.name)).reshape(info.shape)


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
