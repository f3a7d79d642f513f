"""Compute any range of an output file from a plan: gather, compare replicas, add terms, cast."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ckptconv.containers.base import Placed
from ckptconv.containers.decoded import Decoded
from ckptconv.dtypes import BY_NAME, DType, numpy_dtype
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.encode import Encoder
from ckptconv.engine.gather import Array, Shared, gather, raw_dtype, window
from ckptconv.engine.mean import fill_mean
from ckptconv.engine.rows import Rows
from ckptconv.engine.straight import Reads, Straight, one_run, straight
from ckptconv.engine.sums import Sums
from ckptconv.engine.terms import Adder, blocks
from ckptconv.errors import MismatchError
from ckptconv.numbers.casts import cast, cast_chain
from ckptconv.places.files import SourceFiles
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.records import dataclass
from ckptconv.relations import Box, InBlocks, Mean, Pair, Relation, restrict
from ckptconv.relations.terms import Term

__all__ = ["Filler", "Pairs", "indexed", "pairs_by_tensor"]

_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80}
_FLOAT32 = BY_NAME["float32"]
_FEW = 1 << 16  # elements looked at a time, that stay in the cache
_ROUNDED = ("bfloat16", "float16")  # to which decoding rounds by itself


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs that fill one tensor, by first element, and the replicas to compare."""

    fills: Sequence[Pair]
    firsts: Sequence[int]
    reaches: Sequence[int]  # the furthest element any pair up to this one touches
    copies: Sequence[Pair]

    def over(self, lo: int, hi: int) -> Sequence[Pair]:
        """Return the filling pairs that may touch elements ``lo`` up to ``hi``."""
        return self.fills[bisect_right(self.reaches, lo - 1) : bisect_left(self.firsts, hi)]


class Filler:
    """Fill ranges of one output file. Keeps operands alone between calls; safe to use from many threads.

    Args:
        plan: The plan.
        file: The file of the plan.
        sources: The source files.
        pairs: The plan's pairs by tensor, from `pairs_by_tensor`, which serves all files.

    Attributes:
        sums: Seals the file, where its container records sums of the data.
    """

    def __init__(
        self, plan: Plan, file: OutFile, sources: SourceFiles, pairs: Mapping[str, Sequence[Pair]]
    ) -> None:
        self._plan = plan
        self._file = file
        self._sources = sources
        self._offsets = [t.offset for t in file.layout.tensors]
        self._ends = [t.offset + t.nbytes for t in file.layout.tensors]
        self._fixed = [at for at, _ in file.layout.fixed]
        self._by_tensor = pairs
        self._pairs: dict[str, Pairs] = {}
        self._straight: dict[int, Straight | None] = {}
        self._is_remote = sources.is_remote
        self._decoded: dict[str, bool] = {}
        self._adder = Adder(plan.relation.right, self._operand)
        self.sums = Sums(file.layout) if file.layout.needs_crc else None
        self._encoder = Encoder(plan.relation.right, self._operand)

    def fill(self, lo: int, hi: int, buffers: Buffers) -> tuple[Array, list[tuple[int, int, int]], int]:
        """Compute bytes ``lo`` up to ``hi`` of the file, as an array; see `make`."""
        view, spans, overflows = self.make(lo, hi, buffers)
        return np.frombuffer(view, np.uint8), spans, overflows

    def make(self, lo: int, hi: int, buffers: Buffers) -> tuple[memoryview, list[tuple[int, int, int]], int]:
        """Compute bytes ``lo`` up to ``hi`` of the file; of bytes that are only copied nothing asks numpy.

        Args:
            lo: First byte.
            hi: One past the last.
            buffers: The calling thread's memory; the result lies in it until the next call.

        Returns:
            The bytes; for every tensor in the range its number in the layout and the part of the range that
            is its, as byte positions within the range; and how many elements a cast made infinite.

        Raises:
            MismatchError: if a replica differs.
        """
        view, layout, covered = buffers.room("tile", hi - lo), self._file.layout, lo
        spans = []
        for i in range(max(0, bisect_right(self._offsets, lo) - 1), bisect_left(self._offsets, hi)):
            a, b = max(self._offsets[i], lo), min(self._ends[i], hi)
            if a < b:
                spans.append((i, a - lo, b - lo))
                if covered < a:
                    view[covered - lo : a - lo] = bytes(a - covered)
                covered = b
        view[covered - lo :] = bytes(max(0, hi - covered))
        for i in range(max(0, bisect_right(self._fixed, lo) - 1), bisect_left(self._fixed, hi)):
            at, data = layout.fixed[i]
            a, b = max(at, lo), min(at + len(data), hi)
            if a < b:
                view[a - lo : b - lo] = data[a - at : b - at]
        overflows = 0
        reads = Reads(view)
        for i, a, b in spans:
            tensor = layout.tensors[i]
            if (found := self._straight_of(i, tensor, buffers.rows)) is None:
                out = np.frombuffer(view[a:b], np.uint8)
                overflows += self._fill_bytes(tensor, lo + a, out, buffers)
                continue
            at = lo - tensor.offset
            for path, offset, nbytes in found.spans(at + a, at + b):
                reads.add(path, offset, a, a + nbytes)
                a += nbytes
        reads.read(self._sources)
        return view, spans, overflows

    def _straight_of(self, number: int, tensor: Placed, rows: Rows) -> Straight | None:
        """Return where a tensor's bytes lie as they are written, unless its rows are held for others."""
        if self._is_remote:  # what is asked for ahead is asked for tensor by tensor
            return None
        if number not in self._straight:
            self._straight[number] = straight(self._plan, tensor, self._by_tensor.get(tensor.name, ()))
        found = self._straight[number]
        return None if found is None or any(map(rows.room_for, found.names)) else found

    def _indexed(self, name: str) -> Pairs:
        """Return the pairs that fill a tensor of the file, or one that such a tensor is made of."""
        found = self._pairs.get(name)
        if found is None:
            found = self._pairs[name] = indexed(self._by_tensor.get(name, ()))
        return found

    def _fill_bytes(self, tensor: Placed, position: int, out: Array, buffers: Buffers) -> int:
        """Fill a range that may start and end inside an element: not every container aligns its tensors."""
        size = tensor.dtype.itemsize
        head = min((tensor.offset - position) % size, out.nbytes)
        tail = (out.nbytes - head) % size
        if head:
            self._fill_within(tensor, position, out[:head], buffers)
        overflows = 0
        if head + tail < out.nbytes:
            overflows = self._fill_tensor(tensor, position + head, out[head : out.nbytes - tail], buffers)
        if tail:
            at = out.nbytes - tail
            overflows += self._fill_within(tensor, position + at, out[at:], buffers)
        return overflows

    def _fill_within(self, tensor: Placed, position: int, out: Array, buffers: Buffers) -> int:
        """Fill a part of one element."""
        before = (position - tensor.offset) % tensor.dtype.itemsize
        whole = np.empty(tensor.dtype.itemsize, np.uint8)
        overflows = self._fill_tensor(tensor, position - before, whole, buffers)
        out[...] = whole[before : before + out.nbytes]
        return overflows

    def _fill_tensor(self, tensor: Placed, position: int, out: Array, buffers: Buffers) -> int:
        lo = (position - tensor.offset) // tensor.dtype.itemsize
        count = out.nbytes // tensor.dtype.itemsize
        chain = self._plan.casts.get(tensor.name, (tensor.dtype,))
        terms = self._plan.terms.get(tensor.name)
        if terms and isinstance(one := terms[0], InBlocks):
            kind = np.uint8 if one.part == "codes" else np.float32
            self._encoder.fill(one, lo, out.view(kind))
            return 0
        if terms and isinstance(one := terms[0], Mean):
            return fill_mean(one, lo, tensor.dtype, out, self._operand, _overflows)
        if not terms and self._decodes(tensor.name, chain):
            chain = chain[1:]  # what is decoded is rounded as it is
        direct = len(chain) == 1 and not terms
        raw = raw_dtype(chain[0].itemsize)
        source = out.view(raw) if direct else buffers.take("source", count * raw.itemsize).view(raw)
        self._stored(tensor.name, tensor.shape, lo, source, max(out.nbytes, 1 << 16), buffers.rows, chain[0])
        if direct:
            return _infinite(source, tensor.dtype) if self._decoded.get(tensor.name) else 0
        values = source.view(numpy_dtype(chain[0]))
        result = out.view(numpy_dtype(tensor.dtype))
        if terms:
            return self._add(tensor, lo, values, chain, result)
        cast_chain(values, chain, result)
        return _overflows(values, result, tensor.dtype)

    def _stored(
        self,
        name: str,
        shape: tuple[int, ...],
        lo: int,
        source: Array,
        limit: int,
        rows: Rows | None = None,
        dtype: DType | None = None,
    ) -> None:
        """Read elements ``lo`` and up of a tensor as they are stored, and compare their replicas."""
        chain = self._plan.casts.get(name)
        if dtype is None:
            dtype = chain[0] if chain else dtype_named(self._plan.relation.right[name].dtype)
        pairs, hi = self._indexed(name), lo + source.size
        for pair in pairs.over(lo, hi):
            if self._is_read(pair, source, lo, dtype, rows):
                continue
            if (first := self._turned(pair, lo, hi)) is not None:
                wide = np.empty(first[1] - first[0], source.dtype)
                for piece in restrict(pair, *first):
                    self._gather(piece, window_of(wide, piece, first[0]), wide.nbytes, dtype, rows)
                for piece in restrict(Pair(pair.right, pair.right), lo, hi):
                    window_of(source, piece, lo)[...] = window_of(wide, piece, first[0])
                continue
            for piece in restrict(pair, lo, hi):
                self._gather(piece, window_of(source, piece, lo), limit, dtype, rows)
        if not pairs.copies:
            return
        values, wanted = source.view(numpy_dtype(dtype)), dict[Box, bytes]()
        for pair in pairs.copies:
            if self._is_same(pair, source, lo, dtype, wanted):
                continue
            for piece in restrict(pair, lo, hi):
                self._compare(name, shape, piece, window_of(values, piece, lo), dtype, limit)

    def _is_read(self, pair: Pair, source: Array, lo: int, dtype: DType, rows: Rows | None) -> bool:
        """Read what fills a part of a tensor, if it is one run of bytes; what is held for others is not."""
        if rows is not None and rows.room_for(pair.left.tensor):
            return False
        run = one_run(self._plan.stored[pair.left.tensor], pair, lo, lo + source.size, dtype)
        if run is None:
            return False
        right = pair.right
        here = right.is_contiguous
        out = source[run.first - lo : run.end - lo] if here else np.empty(right.size, source.dtype)
        self._sources.read_into(run.path, run.at, out.reshape(-1).view(np.uint8).data)
        if not here:
            window(source, right.offset - lo, right.size, right.stride)[...] = out
        return True

    def _is_same(self, copy: Pair, source: Array, lo: int, dtype: DType, wanted: dict[Box, bytes]) -> bool:
        """Whether a replica that is one run of bytes holds those that are written; False if it may not.

        Args:
            copy: The replica.
            source: The tensor's elements from ``lo`` on.
            lo: The first of them.
            dtype: What they are.
            wanted: What is written to boxes of the tensor: many ranks hold replicas of one.
        """
        run = one_run(self._plan.stored[copy.left.tensor], copy, lo, lo + source.size, dtype)
        if run is None:
            return False
        right = copy.right
        mine: Any  # bytes of any kind
        if right.is_contiguous:
            mine = source[run.first - lo : run.end - lo].view(np.uint8).data
        elif (mine := wanted.get(right, b"")) == b"":
            mine = wanted[right] = window(source, right.offset - lo, right.size, right.stride).tobytes()
        theirs = bytearray(len(mine))
        self._sources.read_into(run.path, run.at, memoryview(theirs))
        return bool(theirs == mine)

    def _add(self, tensor: Placed, lo: int, values: Array, chain: Sequence[DType], result: Array) -> int:
        """Add the tensor's terms in float32 to what its casts but the last give; round once."""
        terms, overflows = self._plan.terms[tensor.name], 0
        columns = prod(tensor.shape[1:])
        before = chain[:-1] or chain
        for block in blocks(lo, lo + values.size, columns):
            row, end, left, right = block
            at, stop = row * columns + left - lo, (end - 1) * columns + right - lo
            total = _as_float32(values[at:stop], before)
            self._adder.add(terms, block, columns, total)
            cast(total, _FLOAT32, tensor.dtype, out=result[at:stop])
            overflows += _overflows(total, result[at:stop], tensor.dtype)
        return overflows

    def _add_to(self, terms: Sequence[Term], shape: tuple[int, ...], lo: int, values: Array) -> None:
        """Add terms to elements ``lo`` and up of a tensor, which are float32."""
        columns = prod(shape[1:])
        for block in blocks(lo, lo + values.size, columns):
            row, end, left, right = block
            at, stop = row * columns + left - lo, (end - 1) * columns + right - lo
            self._adder.add(terms, block, columns, values[at:stop])

    def _operand(self, name: str, lo: int, hi: int) -> Array:
        """Return elements of a tensor that is not written, as float32."""
        spec = self._plan.relation.right[name]
        chain = self._plan.casts.get(name, (dtype_named(spec.dtype),))
        source = np.empty(hi - lo, raw_dtype(chain[0].itemsize))
        self._stored(name, spec.shape, lo, source, max(source.nbytes, 1 << 16))
        values = _as_float32(source.view(numpy_dtype(chain[0])), chain)
        if terms := self._plan.terms.get(name):
            self._add_to(terms, spec.shape, lo, values)
        return values

    def _turned(self, pair: Pair, lo: int, hi: int) -> tuple[int, int] | None:
        """Return whole rows that hold a range, where it costs as much to decode a part of a row: a transpose.

        A row of what is written is then a column of what is decoded, and read from end to end of it.
        """
        if not isinstance(self._plan.stored[pair.left.tensor], Decoded):
            return None
        axes = sorted(zip(*pair.aligned(), strict=True), key=lambda axis: axis[2])
        if len(axes) < 2 or axes[0][2] != 1 or axes[0][1] == 1 or axes[1][2] != axes[0][0]:
            return None
        row, start = axes[1][2], pair.right.offset
        a = max(lo - (lo - start) % row, pair.right.first)
        b = min(hi + (start - hi) % row, pair.right.last + 1)
        return (a, b) if hi - lo < b - a <= 2 * (hi - lo) else None

    def _decodes(self, name: str, chain: Sequence[DType]) -> bool:
        """Whether all of a tensor is decoded, to float32, and then rounded once."""
        if len(chain) != 2 or chain[0] != _FLOAT32:
            return False
        known = self._decoded.get(name)
        if known is None:
            pairs = self._indexed(name)
            of = [self._plan.stored[p.left.tensor] for p in (*pairs.fills, *pairs.copies)]
            known = self._decoded[name] = all(isinstance(s, Decoded) for s in of) and not pairs.copies
        return known and chain[1].name in _ROUNDED

    def _gather(
        self, piece: Pair, out: Array, limit: int, dtype: DType | None = None, rows: Rows | None = None
    ) -> None:
        size, stride, _ = piece.aligned()
        name = piece.left.tensor
        room = rows.room_for(name) if rows is not None else 0
        stored = self._plan.stored[name]
        if isinstance(stored, Decoded) and dtype is not None and dtype != stored.dtype:
            stored, name = stored.rounded(dtype), f"{name} as {dtype}"
        shared = Shared(rows, name, room) if rows is not None and room else None
        gather(self._sources, stored, piece.left.offset, size, stride, out, limit, shared)

    def _compare(
        self, name: str, shape: tuple[int, ...], piece: Pair, values: Array, dtype: DType, limit: int
    ) -> None:
        """Compare a replica with the values that are written, rounded to the replica's dtype."""
        stored = self._plan.stored[piece.left.tensor]
        theirs = np.empty(values.shape, raw_dtype(stored.dtype.itemsize))
        self._gather(piece, theirs, limit)
        theirs = theirs.reshape(-1)
        flat = np.ascontiguousarray(values).reshape(-1)
        if stored.dtype == dtype:
            differ = flat.view(theirs.dtype) != theirs
        else:
            ours = cast(flat.view(numpy_dtype(dtype)), dtype, stored.dtype)
            differ = ours.view(theirs.dtype) != theirs
            if differ.any():  # a NaN has many bit patterns, and training leaves others than a cast does
                differ &= ~(np.isnan(ours) & np.isnan(theirs.view(ours.dtype)))
        unequal = np.flatnonzero(differ)
        if unequal.size:
            first = int(unequal[0])
            size, stride, right = piece.aligned()
            index = np.unravel_index(first, size or (1,))
            at = piece.left.offset + sum(int(i) * s for i, s in zip(index, stride, strict=False))
            path, byte, _ = next(stored.spans(at, at + 1))
            flat_at = piece.right.offset + sum(int(i) * s for i, s in zip(index, right, strict=False))
            place = tuple(int(i) for i in np.unravel_index(flat_at, shape or (1,)))
            raise MismatchError(
                f"{name}{list(place)}: {piece.left.tensor} differs from the value to be written "
                f"({unequal.size} of {prod(size)} elements compared here differ)",
                where=f"{path} at byte {byte}",
                hint="the copies of this tensor disagree; the checkpoint is damaged or mixes saves",
            )


def _as_float32(values: Array, chain: Sequence[DType]) -> Array:
    """Cast through each of ``chain`` in turn, and then to float32; always a new array."""
    out = np.empty(values.shape, np.float32)
    cast_chain(values, chain if chain[-1] == _FLOAT32 and len(chain) > 1 else (*chain, _FLOAT32), out)
    return out


def _overflows(values: Array, result: Array, dtype: DType) -> int:
    """Count the elements that a cast made infinite."""
    if (infinity := _INFINITY.get(dtype.name)) is not None:
        # In the tile's own bits first: nearly always there is none, and that is all that is to be known.
        if _all_finite(result.view(np.uint16), infinity):
            return 0
    elif values.dtype.itemsize <= result.dtype.itemsize:
        return 0
    with np.errstate(invalid="ignore"):  # raised by signalling NaNs
        return int(np.isinf(result).sum() - np.isinf(values).sum())


def _all_finite(bits: Array, infinity: int) -> bool:
    """Whether no value of 16 bits is infinite or no number, by the largest of those of either sign."""
    return not bits.size or bool(bits.view(np.int16).max() < infinity and bits.max() < 0x8000 | infinity)


def _infinite(result: Array, dtype: DType) -> int:
    """Count the elements that decoding made infinite: none is before."""
    infinity = _INFINITY.get(dtype.name)
    if infinity is None:
        return 0
    bits, count = result.view(np.uint16), 0
    if _all_finite(bits, infinity):
        return 0
    for lo in range(0, bits.size, _FEW):
        count += int(np.count_nonzero(bits[lo : lo + _FEW] & 0x7FFF == infinity))
    return count


def pairs_by_tensor(relation: Relation) -> dict[str, list[Pair]]:
    """Group a relation's pairs by the tensor they fill."""
    found: dict[str, list[Pair]] = {}
    for pair in relation.pairs:
        found.setdefault(pair.right.tensor, []).append(pair)
    return found


def window_of(flat: Array, piece: Pair, lo: int) -> Array:
    """Return the part of a flat array of elements ``lo`` and up that a piece covers, in the piece's order."""
    size, _, stride = piece.aligned()
    return window(flat, piece.right.offset - lo, size, stride)


def indexed(pairs: Sequence[Pair]) -> Pairs:
    """Order the pairs that fill a tensor; of most there is one."""
    if len(pairs) == 1 and not pairs[0].left_copy:
        return Pairs(pairs, [pairs[0].right.first], [pairs[0].right.last], [])
    fills = sorted((p for p in pairs if not p.left_copy), key=lambda p: p.right.first)
    reaches: list[int] = []
    for pair in fills:
        reaches.append(max(pair.right.last, reaches[-1] if reaches else 0))
    return Pairs(fills, [p.right.first for p in fills], reaches, [p for p in pairs if p.left_copy])
