"""Find every copy of a tensor that disagrees, where the engine stops at the first."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import DType, numpy_dtype
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler, window_of
from ckptconv.engine.gather import Array, raw_dtype
from ckptconv.numbers.casts import cast
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.relations import Pair, Relation, Spec, restrict
from ckptconv.relations.terms import operands
from ckptconv.verify.result import Mismatch, Place
from ckptconv.verify.tally import Tally

__all__ = ["Finder"]


class Finder:
    """Look for the copies that differ in parts of tensors; safe to use from many threads.

    Attributes:
        single: The plan's pairs by tensor without copies.
    """

    def __init__(
        self, plan: Plan, sources: SourceFiles, pairs: Mapping[str, Sequence[Pair]], tally: Tally
    ) -> None:
        self._plan, self._sources, self._tally = plan, sources, tally
        self.single = {n: [p for p in held if not p.left_copy] for n, held in pairs.items()}
        self._copies = {n: [p for p in held if p.left_copy] for n, held in pairs.items()}
        self._whole: set[str] = set()
        self._lock = threading.Lock()

    def find(self, parts: Sequence[tuple[Placed, int, int]]) -> bool:
        """Take note of the copies that differ; tell whether there are any.

        Args:
            parts: Tensors of a file, with the first and the last byte (exclusive) of each to look at.
        """
        found = False
        for tensor, a, b in parts:
            item = tensor.dtype.itemsize
            lo, hi = (a - tensor.offset) // item, (b - tensor.offset) // item
            found |= self._copies_of(tensor.name, lo, hi)
            for name in operands(self._plan.terms, [tensor.name]):
                with self._lock:
                    if name in self._whole:
                        found = True
                        continue
                if self._copies_of(name, 0, self._plan.relation.right[name].numel):
                    found = True
                    with self._lock:
                        self._whole.add(name)
        return found

    def source_of(self, name: str, index: int) -> Place | None:
        """Say where an element of a tensor is from."""
        for pair in self.single.get(name, ()):
            for piece in restrict(pair, index, index + 1):
                return self._place(piece.left.tensor, piece.left.offset)
        return None

    def _place(self, key: str, index: int) -> Place:
        path, byte, _ = next(self._plan.stored[key].spans(index, index + 1))
        return Place(key, path, byte)

    def _copies_of(self, name: str, lo: int, hi: int) -> bool:
        copies = [c for c in self._copies.get(name, ()) if restrict(c, lo, hi)]
        if not copies:
            return False
        chain = self._plan.casts.get(name)
        dtype = chain[0] if chain else dtype_named(self._plan.relation.right[name].dtype)
        values = self._raw(name, self.single[name], dtype, lo, hi)
        found = False
        for copy in copies:
            found |= self._differs(name, copy, values, dtype, lo)
        return found

    def _differs(self, name: str, copy: Pair, values: Array, dtype: DType, lo: int) -> bool:
        hi = lo + values.size
        theirs_dtype = self._plan.stored[copy.left.tensor].dtype
        theirs = self._raw(name, [copy._replace(left_copy=False)], theirs_dtype, lo, hi)
        ours = values if theirs_dtype == dtype else cast(values, dtype, theirs_dtype)
        raw = raw_dtype(theirs_dtype.itemsize)
        differ = ours.view(raw) != theirs.view(raw)
        if theirs_dtype != dtype:  # as the engine does: training leaves other NaNs than a cast
            differ &= ~(np.isnan(ours) & np.isnan(theirs))
        covered = np.zeros(values.size, np.bool_)
        for piece in restrict(copy, lo, hi):
            window_of(covered, piece, lo)[...] = True
        where = np.flatnonzero(differ & covered)
        if not where.size:
            return False
        first = lo + int(where[0])
        shape = self._plan.relation.right[name].shape
        here = next(piece for piece in restrict(copy, first, first + 1))
        self._tally.add(
            ("replica", name, copy.left.tensor),
            first,
            where,
            ours,
            theirs,
            lambda count: Mismatch(
                "replica",
                name,
                f"{copy.left.tensor} is a copy, but differs in {count} elements",
                tuple(int(i) for i in np.unravel_index(first, shape or (1,)))[: len(shape)],
                source=self.source_of(name, first),
                output=self._place(copy.left.tensor, here.left.offset),
            ),
        )
        return True

    def _raw(self, name: str, pairs: Sequence[Pair], dtype: DType, lo: int, hi: int) -> Array:
        """Read elements as these pairs give them; those that none covers are of any value."""
        shape = self._plan.relation.right[name].shape
        placed = Placed(name, dtype, shape, 0)
        file = OutFile(name, "bin", FileLayout(placed.nbytes, (), (placed,)))
        relation = Relation({}, {name: Spec(shape, dtype.name)}, ())
        plan = replace(self._plan, relation=relation, casts={}, terms={}, files=(file,), assets=())
        filler = Filler(plan, file, self._sources, {name: pairs})
        data, _, _ = filler.fill(lo * dtype.itemsize, hi * dtype.itemsize, Buffers())
        return data.view(numpy_dtype(dtype))
