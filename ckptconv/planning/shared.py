"""Decide under which of its names data that several names share are written.

A state dict lists tied weights in any order; loaders look for the embedding. What a model needs under two
names that nothing ties, they would leave random under the second: it is written twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from ckptconv.relations import Box, Pair, Relation, Spec

__all__ = ["doubled", "first_names"]

# The names transformers keeps of tied weights (5.23, ``_tied_weights_keys`` of its models: the head is the
# copy): one embedding for encoder and decoder, then an embedding. Of biases, that of the head itself.
_SHARED: Final = re.compile(r"(?:.*\.)?shared\.weight")
_EMBED: Final = re.compile(r"(?:.*\.)?(?!embed_out\.|unembed)(?:wte|wpe|\w*emb\w*)\.weight")
_OF_A_HEAD: Final = re.compile(r"(.*)\.(?:decoder|dense|out_proj)\.bias")


def first_names(tensors: Collection[str], aliases: Mapping[str, str], embed: str | None) -> dict[str, str]:
    """Return a better name for each tensor that is kept under one that loaders take for the copy.

    Args:
        tensors: The names that are kept.
        aliases: Further names of them, alias to kept name.
        embed: The name of the embedding, where the architecture is known.
    """
    groups: dict[str, list[str]] = {}
    for alias, kept in aliases.items():
        if kept in tensors:
            groups.setdefault(kept, [kept]).append(alias)
    found = {}
    for kept, names in groups.items():
        best = min(names, key=lambda n: _rank(n, names, embed))
        if best != kept:
            found[kept] = best
    return found


def _rank(name: str, names: Collection[str], embed: str | None) -> tuple[int, int]:
    if name == embed:
        return 0, 0
    if _SHARED.fullmatch(name):
        return 1, 0
    if _EMBED.fullmatch(name):
        return 2, name.count(".")  # the model's own before that of a part
    copied = _OF_A_HEAD.fullmatch(name)
    return 3, int(copied is not None and f"{copied[1]}.bias" in names)


def doubled(tensors: Mapping[str, Spec], aliases: Mapping[str, str]) -> Relation:
    """Relate tensors to themselves, and to what aliases of theirs become: tensors of their own."""
    pairs = [Pair(Box.whole(n, s.shape), Box.whole(n, s.shape)) for n, s in tensors.items() if s.numel]
    right = dict(tensors)
    for alias, kept in aliases.items():
        spec = right[alias] = tensors[kept]
        if spec.numel:
            pairs.append(Pair(Box.whole(kept, spec.shape), Box.whole(alias, spec.shape), right_copy=True))
    return Relation(dict(tensors), right, tuple(pairs))
