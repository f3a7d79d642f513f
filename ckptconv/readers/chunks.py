"""Relate a tensor to the chunks it is stored in."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import mul

from ckptconv.containers.base import FileTensor, contiguous_stride
from ckptconv.containers.stored import Extent, Stored, dense_axes, from_file_tensor
from ckptconv.dtypes import DType
from ckptconv.plans.builder import GraphBuilder
from ckptconv.relations import Box, Pair, join

__all__ = ["place"]


def place(
    graph: GraphBuilder,
    name: str,
    shape: tuple[int, ...],
    dtype: DType,
    chunks: Sequence[tuple[tuple[int, ...], FileTensor]],
    *,
    replica: str | None = None,
) -> None:
    """Declare a tensor and relate it to the chunks it is cut into.

    Chunks that are runs of its row-major elements (rows, layers of a stack) become one stored tensor with an
    extent each; of others each becomes a stored tensor of its own. Whether chunks overlap is checked with the
    relation.

    Args:
        graph: What is added to.
        name: The tensor; it names what is stored, too.
        shape: Its shape.
        dtype: Its element type, also that of each chunk.
        chunks: The offsets along each axis and the located tensor of each chunk.
        replica: What to call a copy of chunks that were placed before; it is compared with them.
    """
    copy = replica is not None
    if not copy:
        graph.name(name, shape, dtype)
    stored = f"{replica}/{name}" if copy else name
    filled = [(offsets, t) for offsets, t in chunks if t.numel]
    runs = _runs(shape, filled)
    if runs is not None:
        if runs:
            graph.store(stored, Stored(dtype, shape, runs))
            graph.pairs += join(Box.whole(stored, shape), Box.whole(name, shape), left_copy=copy)
        return
    forms: dict[object, tuple[bool, list[Pair]]] = {}
    unit = contiguous_stride(shape)
    for offsets, t in filled:
        key = f"{stored}@{','.join(map(str, offsets))}"
        while key in graph.stored:
            key += "'"
        if any(o < 0 or o + n > d for o, n, d in zip(offsets, t.shape, shape, strict=True)):
            Box.of(name, shape, start=offsets, size=t.shape)  # says that it leaves the tensor
        # Chunks are cut alike, so that one pair of boxes is all of them but for where it begins.
        form = (t.shape, t.stride)
        if form not in forms:
            dense = dense_axes(t)
            axes = zip(t.shape, t.stride, strict=True)
            left = Box.strided("", 0, axes) if dense else Box.whole("", t.shape)
            right = Box.of("", shape, start=(0,) * len(shape), size=t.shape)
            forms[form] = dense, join(left, right, left_copy=copy)
        dense, pairs = forms[form]
        extent = Extent(0, t.path, t.offset)
        graph.store(key, Stored(t.dtype, t.shape, (extent,)) if dense else from_file_tensor(t))
        at = sum(map(mul, offsets, unit))
        graph.pairs += [
            Pair(
                Box(key, p.left.offset, p.left.size, p.left.stride),
                Box(name, p.right.offset + at, p.right.size, p.right.stride),
                copy,
            )
            for p in pairs
        ]


def _runs(
    shape: tuple[int, ...], chunks: Sequence[tuple[tuple[int, ...], FileTensor]]
) -> tuple[Extent, ...] | None:
    """Return the extents of chunks that follow each other in row-major order, None if they do not."""
    stride = contiguous_stride(shape)
    found: list[tuple[int, int, FileTensor]] = []
    runs: set[object] = set()
    for offsets, t in chunks:
        form = (t.shape, t.stride)
        if form not in runs:
            cut = [i for i, n in enumerate(t.shape) if n != shape[i]]
            runs.add(form)
            if not t.is_contiguous or (cut and any(n != 1 for n in t.shape[: cut[-1]])):
                return None
        found.append((sum(map(mul, offsets, stride)), t.numel, t))
    found.sort(key=lambda f: f[0])
    done = 0
    for start, count, _ in found:
        if start != done:
            return None
        done += count
    return tuple(Extent(start, t.path, t.offset) for start, _, t in found) if done == prod(shape) else None
