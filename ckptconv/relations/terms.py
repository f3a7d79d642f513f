"""Say what is added to a tensor's values on the way, or what they are made of: sums, products, means."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeAlias

from ckptconv.dtypes import dtype as dtype_named
from ckptconv.errors import PlanError
from ckptconv.records import dataclass
from ckptconv.relations.pair import Spec

__all__ = [
    "Constant",
    "InBlocks",
    "LowRank",
    "Mean",
    "Scaled",
    "Term",
    "Terms",
    "check_terms",
    "concerning",
    "operands",
    "term_dict",
]


@dataclass(frozen=True, slots=True)
class Constant:
    """Add one value to every element."""

    value: float

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors the term is made of."""
        return ()


@dataclass(frozen=True, slots=True)
class Scaled:
    """Add ``scale`` times a tensor of as many elements."""

    tensor: str
    scale: float

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors the term is made of."""
        return (self.tensor,)


@dataclass(frozen=True, slots=True)
class LowRank:
    """Add ``scale * (b @ a)`` to a matrix ``[out, in]``, or its transpose to one ``[in, out]``.

    Attributes:
        a: Name of a tensor ``[r, in]``.
        b: Name of a tensor ``[out, r]``.
        scale: ``alpha / r`` of a LoRA adapter.
        transposed: Whether the matrix is ``[in, out]``: embeddings, and GPT-2's Conv1D.
    """

    a: str
    b: str
    scale: float
    transposed: bool = False

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors the term is made of."""
        return (self.a, self.b)


@dataclass(frozen=True, slots=True)
class InBlocks:
    """Be the codes or the scales of a matrix that is quantised in blocks; nothing else is added.

    Attributes:
        tensor: Name of the matrix.
        part: ``codes`` or ``scales``.
        block: Rows and columns that share a scale.
        powers: Whether scales are powers of two.
    """

    tensor: str
    part: str
    block: tuple[int, int]
    powers: bool = False

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors the term is made of."""
        return (self.tensor,)

    def shape(self, matrix: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of what a matrix becomes."""
        if self.part == "codes":
            return matrix
        return tuple([-(-n // b) for n, b in zip(matrix, self.block, strict=True)])


@dataclass(frozen=True, slots=True)
class Mean:
    """Be ``ratio * tensor`` of each tensor, summed in float32 in this order; nothing else is added.

    Attributes:
        tensors: Names of tensors of its shape, whose own terms are added first.
        ratios: What each is multiplied by, as float32.
    """

    tensors: tuple[str, ...]
    ratios: tuple[float, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors the term is made of."""
        return self.tensors


Term: TypeAlias = "Constant | Scaled | LowRank | InBlocks | Mean"
Terms = Mapping[str, tuple[Term, ...]]
"""What is added to a tensor, by its name. Operands are right tensors of the relation that are not written;
they may have terms of their own."""


def operands(terms: Terms, names: Iterable[str] | None = None) -> dict[str, None]:
    """Return the names of all tensors that terms are made of, each once, in order.

    Args:
        terms: The terms.
        names: The tensors whose terms are meant, with those of their operands; None for all.
    """
    found: dict[str, None] = {}
    todo = list(reversed(tuple(terms if names is None else names)))
    while todo:
        more = [n for term in terms.get(todo.pop(), ()) for n in term.operands if n not in found]
        found |= dict.fromkeys(more)
        todo += reversed(more)
    return found


def concerning(terms: Terms, names: Collection[str]) -> dict[str, tuple[Term, ...]]:
    """Return the terms of these tensors and of what they are made of."""
    every = (*names, *operands(terms, names))
    return {n: terms[n] for n in dict.fromkeys(every) if n in terms}


def term_dict(term: Term) -> dict[str, Any]:
    """Return a term as JSON-ready data."""
    return {"kind": type(term).__name__, **asdict(term)}


def check_terms(tensors: Mapping[str, Spec], written: Collection[str], terms: Terms) -> None:
    """Refuse terms that do not fit the tensors they are added to.

    Args:
        tensors: All right tensors of the relation.
        written: Those that lie in an output file.
        terms: What is added.

    Raises:
        PlanError: if a tensor is not there, is no floating-point tensor, has another shape than the term
            needs, or if an operand is written itself.
    """
    names, parts = set(written), operands(terms)
    for name, added in terms.items():
        problem = next(_problems(name, added, tensors, names, parts), None)
        if problem is not None:
            raise PlanError(problem, hint="compare the adapter with the model it was trained on")


def _problems(
    name: str,
    added: tuple[Term, ...],
    tensors: Mapping[str, Spec],
    written: set[str],
    parts: Collection[str],
) -> Iterator[str]:
    if name not in tensors or (name not in written and name not in parts):
        yield f"something is to be added to {name}, which is not written"
        return
    for part in (name, *(part for term in added for part in term.operands)):
        if part not in tensors:
            yield f"{part} is to be added to {name}, but is not in the checkpoint"
            return
        if dtype_named(tensors[part].dtype).kind != "float":
            yield f"{part} is stored as {tensors[part].dtype}; only floating-point tensors are added up"
        if part != name and part in written:
            yield f"{part} is added to {name} and written as well"
    shape = tensors[name].shape
    for term in added:
        if isinstance(term, LowRank):
            a, b = tensors[term.a].shape, tensors[term.b].shape
            fits = len(a) == len(b) == 2 and a[0] == b[1] and a[0] > 0
            if not fits or shape != ((a[1], b[0]) if term.transposed else (b[0], a[1])):
                turned = " transposed" if term.transposed else ""
                yield (
                    f"{name}{list(shape)} cannot take the{turned} product of {term.b}{list(b)} and "
                    f"{term.a}{list(a)}"
                )
        elif isinstance(term, InBlocks) and (
            len(matrix := tensors[term.tensor].shape) != 2 or shape != term.shape(matrix)
        ):
            yield f"{name}{list(shape)} cannot be the {term.part} of {term.tensor}{list(matrix)}"
        elif isinstance(term, (Scaled, Mean)):
            other = next((n for n in term.operands if tensors[n].shape != shape), None)
            if other is not None:
                yield f"{name}{list(shape)} cannot take {other}{list(tensors[other].shape)}"
