"""Number experts as the model does: within a rank DeepSpeed's parameter names count them from 0.

Expert-parallel rank ``e`` of a layer whose ranks hold ``n`` experts each has those from ``e * n`` on
(deepspeed 0.19.8, ``runtime/engine.py``, ``_get_moe_state_dict``). Layers may differ in how many they have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Experts", "in_order", "is_expert"]

_EXPERT = re.compile(r"(?P<layer>.*deepspeed_experts\.)(?P<number>\d+)(?=\.)")


def is_expert(name: str) -> bool:
    """Whether a name is that of an expert's tensor."""
    return _EXPERT.match(name) is not None


class Experts:
    """Know how many experts each mixture of a model has, from the names of all of them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._counts: dict[str, int] = {}
        for name in names:
            if m := _EXPERT.match(name):
                self._counts[m["layer"]] = max(self._counts.get(m["layer"], 0), int(m["number"]) + 1)

    def of_rank(self, name: str, ranks: int) -> int | None:
        """Return the expert-parallel rank of ``ranks`` that holds an expert's tensor; None if it is none."""
        m = _EXPERT.match(name)
        return int(m["number"]) // self._local(m["layer"], ranks) if m else None

    def global_name(self, name: str, rank: int, ranks: int) -> str:
        """Give the tensor of a rank's expert its number in the model."""
        m = _EXPERT.match(name)
        if not m or not rank:
            return name
        number = int(m["number"]) + rank * self._local(m["layer"], ranks)
        return f"{m['layer']}{number}{name[m.end() :]}"

    def _local(self, layer: str, ranks: int) -> int:
        return max(1, self._counts.get(layer, 0) // ranks)


def in_order(names: Iterable[str]) -> list[str]:
    """Order names as the module's parameters are: layer by layer, in each expert by expert.

    The files of 0.5 hold one expert of every layer each.
    """
    layers: dict[str, int] = {}
    keyed = []
    for i, name in enumerate(names):
        m = _EXPERT.match(name)
        layer = layers.setdefault(m["layer"], len(layers)) if m else -1
        keyed.append((layer, int(m["number"]) if m else 0, i, name))
    return [name for *_, name in sorted(keyed)]
