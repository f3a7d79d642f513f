"""Tell which of several forms a checkpoint of a style has, from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ckptconv.dialects.mindformers.core import CORE
from ckptconv.dialects.mindformers.glm import GLM
from ckptconv.dialects.mindformers.llama import LEGACY
from ckptconv.dialects.mindformers.style import Style
from ckptconv.relations import Spec
from ckptconv.slots.entry import numbers

__all__ = ["told", "unsaid", "usual"]


def told(style: Style, tensors: Mapping[str, Spec]) -> frozenset[str]:
    """Return the words that names and shapes tell."""
    found = {w for w, pattern in style.words.items() if any(re.fullmatch(pattern, n) for n in tensors)}
    embed = next(e.name for e in style.entries if e.pack == "embed")
    hidden = tensors[embed].shape[-1] if embed in tensors else 0
    for name, spec in tensors.items():
        if name.endswith(".feed_forward.ffn.w1.weight") and spec.shape[1:2] == (hidden,) != spec.shape[2:]:
            found.add("gmm")
        elif name.endswith(".mlp.experts.weight1") and spec.shape[0] == hidden:
            found.add("wide")
    return frozenset(found)


def unsaid(style: Style, tensors: Mapping[str, Spec], words: Collection[str]) -> dict[str, bool]:
    """Return the words that names and shapes leave open, each with what is most likely."""
    names = {numbers(name)[0].rpartition(".layers.#.")[2] for name in tensors}
    open_words: dict[str, bool] = {}
    if style is LEGACY:
        if "qkv_concat" in words and "wqkv" not in words:
            open_words["qkv_contiguous"] = False
        if "mlp_concat" in words:
            open_words["mlp_contiguous"] = False
        if any(
            n.endswith(".feed_forward.ffn.w1.weight") and len(set(s.shape[1:])) == 1
            for n, s in tensors.items()
        ):
            open_words["gmm"] = False
    elif style is GLM:
        open_words["rearranged"] = False
    elif style is CORE:
        if "mla" not in words and "self_attention.linear_qkv.weight" in names:
            open_words["qkv_contiguous"] = False
        if any(n.endswith(("mlp.linear_fc1.weight", "shared_experts.linear_fc1.weight")) for n in names):
            open_words["mlp_contiguous"] = "mla" in words
    return open_words


def usual(style: Style, tensors: Mapping[str, Spec]) -> frozenset[str]:
    """Return the words that hold if nothing but the tensors is known."""
    words = told(style, tensors)
    return words | {word for word, likely in unsaid(style, tensors, words).items() if likely}
