"""Join the shards of tensor-parallel ranks as AutoTP cut them.

AutoTP writes how each parameter is cut into ``universal_checkpoint_info`` (deepspeed 0.19.8,
``checkpoint/constants.py``, ``affine.py`` and ``ds_to_universal.py``): patterns of the names of replicated
and row-parallel parameters, and from 0.19.7 on ``affine_map``, the strided pieces of each rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.errors import FormatError, PlanError
from ckptconv.readers.deepspeed.states import as_dict, shape_of
from ckptconv.relations import Box, Drop, Pair, Relation, Spec

__all__ = ["join_tensor_parallel"]


def _matches(patterns: object, name: str) -> bool:
    return isinstance(patterns, list) and any(isinstance(p, str) and _compiled(p, name) for p in patterns)


def _compiled(pattern: str, name: str) -> bool:
    # A hostile pattern could take exponential time; DeepSpeed's own are anchored literals with \d+ in them.
    if len(pattern) > 1000 or re.search(r"[*+}]\)?[*+{]", pattern):
        raise FormatError(f"a parameter pattern is not a plain one: {pattern[:80]!r}")
    try:
        return re.match(pattern, name) is not None
    except re.error as e:
        raise FormatError(f"a parameter pattern is not a regular expression: {pattern[:80]!r}") from e


def join_tensor_parallel(
    shards: Relation, prefixes: Sequence[str], info: Mapping[str, Any], where: Path
) -> Relation:
    """Relate the shards of all tensor-parallel ranks to whole tensors.

    Args:
        shards: A relation whose right side is every rank's tensors, each name behind its rank's prefix.
        prefixes: The prefixes by rank.
        info: ``universal_checkpoint_info``.
        where: The file it is from.

    Returns:
        Shards on the left, whole tensors on the right.
    """
    tp = len(prefixes)
    pairs: list[Pair] = []
    drops: list[Drop] = []
    whole: dict[str, Spec] = {}
    names = [n.removeprefix(prefixes[0]) for n in shards.right if n.startswith(prefixes[0])]
    maps = as_dict(as_dict(info.get("affine_map")).get("params"))
    for name in names:
        parts = []
        for prefix in prefixes:
            spec = shards.right.get(prefix + name)
            if spec is None:
                raise PlanError(
                    f"tensor-parallel rank {prefix.rstrip('/')} does not hold {name}", where=where
                )
            parts.append(spec)
        pieces = next((m for p, m in maps.items() if isinstance(p, str) and _compiled(p, name)), None)
        if pieces is not None:
            whole[name] = Spec(shape_of(pieces["logical_shape"]), parts[0].dtype)
            pairs += _affine(name, prefixes, pieces)
        elif _matches(info.get("tp_replicated_parameter_patterns"), name):
            whole[name] = parts[0]
            for r, prefix in enumerate(prefixes):
                box = Box.whole(prefix + name, parts[r].shape)
                pairs.append(Pair(box, Box.whole(name, parts[0].shape), left_copy=r > 0))
        else:
            if _sub_params(info.get("parameter_with_sub_params"), name):
                raise PlanError(
                    f"{name} is cut in sub-parameters, which deepspeed before 0.19.7 does not describe fully",
                    where=where,
                )
            axis = 1 if _matches(info.get("parameter_with_row_parallelism_patterns"), name) else 0
            vocab = (
                info.get("original_vocab_size")
                if _matches(info.get("vocabulary_parameter_patterns"), name)
                else None
            )
            new_pairs, new_drops, whole[name] = _concatenate(name, prefixes, parts, axis, vocab, where)
            pairs += new_pairs
            drops += new_drops
    left = {p + n: shards.right[p + n] for p in prefixes for n in names}
    extra = next((n for n in shards.right if n not in left), None)
    if extra is not None:
        raise PlanError(f"only some tensor-parallel ranks hold {extra} (of {tp})", where=where)
    return Relation(left, whole, tuple(pairs), tuple(drops))


def _sub_params(entries: object, name: str) -> bool:
    return isinstance(entries, list) and any(_matches(as_dict(e).get("patterns"), name) for e in entries)


def _affine(name: str, prefixes: Sequence[str], entry: Mapping[str, Any]) -> list[Pair]:
    """Pairs of the strided pieces DeepSpeed names itself: ``source`` in the whole, ``dest`` in the shard."""
    pairs = []
    for r, rank in as_dict(entry.get("ranks")).items():
        for piece in rank["pieces"]:
            if piece.get("scale", 1.0) != 1.0:
                raise PlanError(f"{name} is stored scaled by {piece['scale']} on rank {r}")
            shape = shape_of(piece["shape"])
            (source, source_stride), (dest, dest_stride) = piece["source"], piece["dest"]
            if prod(shape):
                left = Box.strided(
                    prefixes[int(r)] + name, int(dest), zip(shape, shape_of(dest_stride), strict=True)
                )
                right = Box.strided(name, int(source), zip(shape, shape_of(source_stride), strict=True))
                copy = min(int(k) for k in piece["locations"]) != int(r)
                pairs.append(Pair(left, right, left_copy=copy))
    return pairs


def _concatenate(
    name: str, prefixes: Sequence[str], parts: Sequence[Spec], axis: int, vocab: object, where: Path
) -> tuple[list[Pair], list[Drop], Spec]:
    """Join shards along an axis; rows beyond the true vocabulary are padding."""
    shape = list(parts[0].shape)
    if any(
        len(p.shape) != len(shape)
        or p.shape[:axis] + p.shape[axis + 1 :] != (*shape[:axis], *shape[axis + 1 :])
        for p in parts
    ) or axis >= len(shape):
        raise PlanError(
            f"the shards of {name} do not fit together along axis {axis}: {[list(p.shape) for p in parts]}",
            where=where,
        )
    total = sum(p.shape[axis] for p in parts)
    shape[axis] = min(total, vocab) if isinstance(vocab, int) and axis == 0 and vocab > 0 else total
    whole = tuple(shape)
    pairs, drops, at = [], [], 0
    for prefix, part in zip(prefixes, parts, strict=True):
        rows = part.shape[axis]
        keep = max(0, min(rows, whole[axis] - at))
        start, size = [0] * len(shape), [*part.shape]
        if keep:
            size[axis] = keep
            target = [0] * len(shape)
            target[axis] = at
            left = Box.of(prefix + name, part.shape, start=tuple(start), size=tuple(size))
            pairs.append(Pair(left, Box.of(name, whole, start=tuple(target), size=tuple(size))))
        if keep < rows:
            start[axis], size[axis] = keep, rows - keep
            pad = Box.of(prefix + name, part.shape, start=tuple(start), size=tuple(size))
            drops.append(Drop(pad, "vocabulary padding"))
        at += rows
    return pairs, drops, Spec(whole, parts[0].dtype)
