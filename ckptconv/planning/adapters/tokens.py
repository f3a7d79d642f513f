"""Put rows that PEFT trained for single tokens in place of the embedding's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ckptconv.errors import PlanError
from ckptconv.planning.adapters.adapter import CONFIG, WITH_PEFT, AdapterConfig
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.relations import Box, Drop, Pair, Relation

__all__ = ["rows_name", "with_rows"]

_KEY = "trainable_token_indices"


def rows_name(module: str) -> str:
    """Return the name by which a module's trained rows go until they are in place."""
    return f"{module}.weight.tokens"


def with_rows(checkpoint: Checkpoint, modules: Sequence[str], config: AdapterConfig | None) -> Checkpoint:
    """Return a checkpoint whose embeddings have their trained rows.

    The rows lie in the order of ``trainable_token_indices`` (peft 0.21, ``trainable_tokens/layer.py``).

    Args:
        checkpoint: Embeddings, and their rows under `rows_name`.
        modules: The modules that have such rows.
        config: The adapter's config.

    Raises:
        PlanError: if the config does not say which tokens they are of, or they do not fit.
    """
    tensors = checkpoint.relation.right
    right = dict(tensors)
    pairs: list[Pair] = []
    drops: list[Drop] = []
    for module in modules:
        weight, rows = f"{module}.weight", rows_name(module)
        indices = _indices(module, config)
        if weight not in tensors:
            raise PlanError(f"there are trained rows of {weight}, but no such weight", where=checkpoint.data)
        shape, columns = tensors[weight].shape, tensors[weight].shape[-1]
        fits = len(set(indices)) == len(indices) and all(0 <= i < shape[0] for i in indices)
        if tensors[rows].shape != (len(indices), columns) or not fits:
            raise PlanError(
                f"{_KEY} names {len(indices)} rows of {weight} {list(shape)}, the checkpoint holds "
                f"{list(tensors[rows].shape)}",
                where=checkpoint.data,
                hint=WITH_PEFT,
            )
        del right[rows]
        for k, row in enumerate(indices):
            own = Box.interval(rows, k * columns, (k + 1) * columns)
            place = Box.interval(weight, row * columns, (row + 1) * columns)
            pairs.append(Pair(own, place))
            drops.append(Drop(place, "replaced by a trained row"))
        ends = [-1, *sorted(indices), shape[0]]
        for lo, hi in pairwise(ends):
            if hi - lo > 1:
                rest = Box.interval(weight, (lo + 1) * columns, hi * columns)
                pairs.append(Pair(rest, rest))
        right[weight] = tensors[weight]
    done = {name for module in modules for name in (f"{module}.weight", rows_name(module))}
    pairs += [
        Pair(Box.whole(n, s.shape), Box.whole(n, s.shape))
        for n, s in tensors.items()
        if n not in done and s.numel
    ]
    relation = Relation(dict(tensors), right, tuple(pairs), tuple(drops))
    via = {n: d for n, d in checkpoint.via.items() if n in right}
    return replace(checkpoint, relation=checkpoint.relation.compose(relation), via=via)


def _indices(module: str, config: AdapterConfig | None) -> list[int]:
    """Return which rows of a module were trained: one list for the embedding, or one by the module's name."""
    said = config.values.get(_KEY) if config is not None else None
    if isinstance(said, Mapping):
        said = next((v for k, v in said.items() if module == k or module.endswith(f".{k}")), None)
    if not isinstance(said, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in said):
        raise PlanError(
            f"rows of {module} were trained, but no {CONFIG} says of which tokens",
            hint=f"put the {CONFIG} of the training beside the checkpoint: {_KEY} says it",
        )
    return said
