"""Relate tensors as a file packs or shards them (left) to whole logical tensors (right).

Each function gives the relation that merges; its `invert` splits. They chain by `Relation.compose`:
``split(shards, "qkv", spec, axis=0).compose(in_turns("qkv", parts, groups=8))`` relates the shards of a fused
tensor to its query, key and value. Axes may be negative. All raise `PlanError` where shapes do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from operator import mul

from ckptconv.errors import PlanError
from ckptconv.relations.box import Box
from ckptconv.relations.pair import Drop, Pair, Spec, join
from ckptconv.relations.relation import Relation

__all__ = [
    "chunk_sizes",
    "halved",
    "in_a_row",
    "in_turns",
    "padded",
    "partitioned",
    "permuted",
    "piled",
    "renamed",
    "replicated",
    "row_by_row",
    "split",
    "swapped",
    "tiled",
]

_HINT = "compare the tensor's shape with the model's configuration and the parallel layout"


def renamed(packed: str, whole: str, spec: Spec, *, shape: Sequence[int] | None = None) -> Relation:
    """Rename a tensor; ``shape`` is the packed one where it is another view of the same elements."""
    stored = Spec(spec.shape if shape is None else tuple(shape), spec.dtype)
    if stored.numel != spec.numel:
        raise PlanError(f"{packed} {list(stored.shape)} cannot be {whole} {list(spec.shape)}", hint=_HINT)
    pair = Pair(Box.whole(packed, stored.shape), Box.whole(whole, spec.shape))
    return Relation({packed: stored}, {whole: spec}, (pair,))


def in_turns(packed: str, parts: Mapping[str, Spec], *, groups: int, axis: int = 0) -> Relation:
    """Pack tensors by turns: each is cut into equal groups along an axis, group 0 of all comes first.

    With query groups this is Megatron's fused QKV: the query heads of a group, its key, its value
    (Megatron-LM, core 0.16.1, ``megatron/core/transformer/attention.py``, ``get_query_key_value_tensors``).

    Args:
        packed: Name of the packed tensor.
        parts: The whole tensors in the order of packing; their shapes may differ along ``axis``.
        groups: Number of groups.
        axis: The axis they are packed along.
    """
    names = list(parts)
    first = parts[names[0]]
    at = _axis(packed, first, axis)
    outer, inner = first.shape[:at], first.shape[at + 1 :]
    runs: dict[str, int] = {}
    for name, spec in parts.items():
        if (spec.shape[:at], spec.shape[at + 1 :], spec.dtype) != (outer, inner, first.dtype):
            raise PlanError(
                f"{packed} cannot hold both {_text(names[0], first)} and {_text(name, spec)}", hint=_HINT
            )
        runs[name] = _divide(name, spec, at, groups)
    turn = sum(runs.values())
    stored = Spec((*outer, groups * turn, *inner), first.dtype)
    view = (prod(outer), groups, turn, prod(inner))
    pairs: list[Pair] = []
    done = 0
    for name, run in runs.items():
        size = (prod(outer), groups, run, prod(inner))
        box = Box.of(packed, stored.shape, view=view, start=(0, 0, done, 0), size=size)
        pairs.append(Pair(box, Box.whole(name, parts[name].shape)))
        done += run
    return Relation({packed: stored}, dict(parts), tuple(pairs))


def in_a_row(packed: str, parts: Mapping[str, Spec], *, axis: int = 0) -> Relation:
    """Pack tensors one after the other along an axis."""
    return in_turns(packed, parts, groups=1, axis=axis)


def row_by_row(packed: str, parts: Mapping[str, Spec], *, axis: int = 0) -> Relation:
    """Pack tensors of one shape index by index along an axis: index 0 of all, then index 1 of all."""
    spec = next(iter(parts.values()))
    return in_turns(packed, parts, groups=max(spec.shape[_axis(packed, spec, axis)], 1), axis=axis)


def piled(packed: str, parts: Mapping[str, Spec]) -> Relation:
    """Pack tensors of one shape along a new leading axis: experts, or layers."""
    spec = next(iter(parts.values()))
    if wrong := [name for name in parts if parts[name] != spec]:
        raise PlanError(
            f"{packed} cannot stack {_text(wrong[0], parts[wrong[0]])} on {_text('', spec)}", hint=_HINT
        )
    pairs = [
        Pair(Box.interval(packed, i * spec.numel, (i + 1) * spec.numel), Box.whole(name, spec.shape))
        for i, name in enumerate(parts)
    ]
    return Relation({packed: Spec((len(parts), *spec.shape), spec.dtype)}, dict(parts), tuple(pairs))


def permuted(packed: str, whole: str, spec: Spec, *, order: Sequence[int] | None = None) -> Relation:
    """Permute axes: axis ``i`` of the packed is axis ``order[i]`` of the whole, reversed by default."""
    axes = tuple(reversed(range(len(spec.shape)))) if order is None else tuple(order)
    box = Box.of(whole, spec.shape, order=axes)
    stored = Spec(tuple(spec.shape[a] for a in axes), spec.dtype)
    return Relation({packed: stored}, {whole: spec}, (Pair(Box.whole(packed, stored.shape), box),))


def halved(
    packed: str,
    whole: str,
    spec: Spec,
    *,
    heads: int,
    axis: int = 0,
    start: int = 0,
    size: int | None = None,
) -> Relation:
    """Reorder the rotary dimensions of each head from neighbouring pairs (packed) to two halves (whole).

    Packed dimensions 0, 2, 4, ... of a head are its first half, 1, 3, 5, ... its second.

    Args:
        packed: Name of the tensor with pairs.
        whole: Name of the tensor with halves.
        spec: Shape and type of both.
        heads: Heads along ``axis``.
        axis: The axis that holds heads and their dimensions.
        start: First rotary dimension of a head; those before are kept in place.
        size: Rotary dimensions of a head, an even number; those after are kept in place.
    """
    at = _axis(whole, spec, axis)
    dim = _divide(whole, spec, at, heads)
    turned = dim - start if size is None else size
    if start < 0 or turned < 0 or turned % 2 or start + turned > dim:
        raise PlanError(f"{whole}: no {turned} rotary dimensions from {start} in heads of {dim}", hint=_HINT)
    rows, columns = prod(spec.shape[:at]) * heads, prod(spec.shape[at + 1 :])
    view = (rows, dim, columns)
    pairs: list[Pair] = []
    for offset in (0, 1):
        half = (rows, turned // 2, columns)
        left = Box.of(packed, spec.shape, view=view, start=(0, start + offset, 0), size=half, step=(1, 2, 1))
        right = Box.of(whole, spec.shape, view=view, start=(0, start + offset * turned // 2, 0), size=half)
        pairs += join(left, right)
    for lo, hi in ((0, start), (start + turned, dim)):
        if lo < hi:
            kept = Box.of(packed, spec.shape, view=view, start=(0, lo, 0), size=(rows, hi - lo, columns))
            pairs.append(Pair(kept, kept._replace(tensor=whole)))
    return Relation({packed: spec}, {whole: spec}, tuple(pairs))


def swapped(packed: str, whole: str, spec: Spec, *, axis: int = -1) -> Relation:
    """Exchange the two halves of an axis."""
    at = _axis(whole, spec, axis)
    half = _divide(whole, spec, at, 2)
    size = [half if a == at else n for a, n in enumerate(spec.shape)]

    def box(name: str, second: bool) -> Box:
        start = [half if a == at and second else 0 for a in range(len(size))]
        return Box.of(name, spec.shape, start=start, size=size)

    pairs = [Pair(box(packed, second), box(whole, not second)) for second in (False, True)]
    return Relation({packed: spec}, {whole: spec}, tuple(pairs))


def tiled(chunks: Mapping[str, tuple[Sequence[int], Sequence[int]]], whole: str, spec: Spec) -> Relation:
    """Relate hyper-rectangular chunks, by name their (start, size), to the tensor they make up."""
    left = {name: Spec(tuple(size), spec.dtype) for name, (_, size) in chunks.items()}
    shape = spec.shape
    steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    forms: dict[tuple[int, ...], Box] = {}  # chunks of one size differ in where they begin
    pairs = []
    for name, (start, _) in chunks.items():
        size = left[name].shape
        if not (numel := prod(size)):
            continue
        if (form := forms.get(size)) is None:
            form = forms[size] = Box.of(whole, shape, start=start, size=size)
        if len(start) != len(shape) or any(
            not 0 <= at <= n - own for at, own, n in zip(start, size, shape, strict=True)
        ):
            form = Box.of(whole, shape, start=start, size=size)  # which refuses it
        part = Box(whole, sum(map(mul, start, steps)), form.size, form.stride)
        pairs.append(Pair(Box.interval(name, 0, numel), part))
    return Relation(left, {whole: spec}, tuple(pairs))


def split(
    shards: Sequence[str], whole: str, spec: Spec, *, axis: int, sizes: Sequence[int] | None = None
) -> Relation:
    """Relate the shards of ranks along an axis to the whole; ``sizes`` states uneven ones, 0 among them."""
    at = _axis(whole, spec, axis)
    if sizes is None:
        sizes = [_divide(whole, spec, at, len(shards))] * len(shards)
    if len(sizes) != len(shards) or sum(sizes) != spec.shape[at] or min(sizes) < 0:
        raise PlanError(
            f"{_text(whole, spec)}: axis {at} is not cut by {list(sizes)} into {len(shards)}", hint=_HINT
        )
    chunks: dict[str, tuple[Sequence[int], Sequence[int]]] = {}
    done = 0
    for name, size in zip(shards, sizes, strict=True):
        start = [done if a == at else 0 for a in range(len(spec.shape))]
        chunks[name] = (start, [size if a == at else n for a, n in enumerate(spec.shape)])
        done += size
    return tiled(chunks, whole, spec)


def chunk_sizes(total: int, ranks: int) -> list[int]:
    """Return the sizes of ``torch.chunk``, padded with zeros to ``ranks``, as FSDP2 cuts rows."""
    size = max(-(-total // ranks), 1)
    return [max(min(size, total - rank * size), 0) for rank in range(ranks)]


def replicated(replicas: Sequence[str], whole: str, spec: Spec) -> Relation:
    """Relate equal tensors of ranks to one: the first provides it, the others are declared copies."""
    pairs = [
        Pair(Box.whole(name, spec.shape), Box.whole(whole, spec.shape), left_copy=i > 0)
        for i, name in enumerate(replicas)
    ]
    return Relation(dict.fromkeys(replicas, spec), {whole: spec}, tuple(pairs))


def padded(
    packed: str, whole: str, spec: Spec, *, rows: int, axis: int = 0, reason: str = "vocabulary padding"
) -> Relation:
    """Relate a tensor that ends in rows of padding to its true rows; the padding is a drop."""
    at = _axis(whole, spec, axis)
    true = spec.shape[at]
    if rows < true:
        raise PlanError(f"{packed}: {rows} rows cannot hold the {true} of {whole}", hint=_HINT)
    stored = Spec((*spec.shape[:at], rows, *spec.shape[at + 1 :]), spec.dtype)
    start = [true if a == at else 0 for a in range(len(spec.shape))]
    pair = Pair(Box.of(packed, stored.shape, size=spec.shape), Box.whole(whole, spec.shape))
    drops = (Drop(Box.of(packed, stored.shape, start=start), reason),) if rows > true else ()
    return Relation({packed: stored}, {whole: spec}, (pair,), left_only=drops)


def partitioned(
    name: str, numel: int, ranks: int, virtual: str, row_length: int, column: int
) -> tuple[list[Pair], list[Drop]]:
    """Relate a parameter cut over ranks to a virtual tensor with a row for each rank, as ZeRO-3 lays it out.

    Rank ``r`` holds elements ``r * part`` to ``(r + 1) * part`` at ``column`` of its flat buffer, where
    ``part`` is ``ceil(numel / ranks)``; what is left in the last ranks is padding (DeepSpeed 0.19.8,
    ``deepspeed/runtime/zero/partition_parameters.py``, ``_partition_param``). However many ranks there are,
    this takes at most two pairs and two drops.

    Args:
        name: The parameter (right side).
        numel: Its number of elements.
        ranks: Rows of the virtual tensor.
        virtual: Name of the virtual tensor (left side), of shape ``(ranks, row_length)``.
        row_length: Elements of a rank's flat buffer.
        column: Where the parameter starts in it.

    Returns:
        The pairs, and the drops of padding on the left.
    """
    part = -(-numel // ranks)
    full, rest = divmod(numel, part) if part else (ranks, 0)
    shape = (ranks, row_length)

    def block(row: int, rows: int, skip: int, width: int) -> Box:
        return Box.of(virtual, shape, start=(row, column + skip), size=(rows, width))

    pairs: list[Pair] = []
    drops: list[Drop] = []
    if full and part:
        pairs.append(Pair(block(0, full, 0, part), Box.interval(name, 0, full * part)))
    if rest:
        pairs.append(Pair(block(full, 1, 0, rest), Box.interval(name, full * part, numel)))
        drops.append(Drop(block(full, 1, rest, part - rest), "ZeRO padding"))
    if part and (used := full + bool(rest)) < ranks:
        drops.append(Drop(block(used, ranks - used, 0, part), "ZeRO padding"))
    return pairs, drops


def _axis(name: str, spec: Spec, axis: int) -> int:
    rank = len(spec.shape)
    if not -rank <= axis < rank:
        raise PlanError(f"{_text(name, spec)} has no axis {axis}", hint=_HINT)
    return axis % rank


def _divide(name: str, spec: Spec, axis: int, by: int) -> int:
    if by < 1 or spec.shape[axis] % by:
        raise PlanError(f"{_text(name, spec)}: axis {axis} cannot be cut into {by} equal parts", hint=_HINT)
    return spec.shape[axis] // by


def _text(name: str, spec: Spec) -> str:
    return f"{name} {spec.dtype}{list(spec.shape)}".lstrip()
