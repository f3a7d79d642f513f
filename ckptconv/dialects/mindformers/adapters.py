"""Take experts that lie in one tensor apart where LoRA adapters were trained for them, one for each.

Shapes: mindformers 2.1, ``pynative/pet/layers`` (``GroupedMLPWithLoRA``): ``weight1_lora_a`` is ``[experts,
hidden, r]`` and ``weight1_lora_b`` ``[experts, r, 2*inner]``; each expert's is the transpose of a linear
layer's factor, as its weight is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckptconv.dialects.stacked import turned
from ckptconv.relations import Relation, Spec, renamed
from ckptconv.slots import Table
from ckptconv.slots.entry import numbers

__all__ = ["experts_apart"]

_TOGETHER = re.compile(r"(?P<stem>.*\.mlp\.experts\.)weight(?P<which>[12])(?:_(?P<part>lora_[ab]))?")


def experts_apart(tensors: Mapping[str, Spec], table: Table) -> tuple[Relation, Table] | None:
    """Relate tensors (left) to the same with experts one by one, where these have adapters.

    Args:
        tensors: The tensors under MindFormers' names.
        table: Where these are looked up.

    Returns:
        The relation and the table for the names on its right; None if no experts have adapters.
    """
    found = {n: m for n, s in tensors.items() if len(s.shape) == 3 and (m := _TOGETHER.fullmatch(n))}
    trained = {m["stem"] for m in found.values() if m["part"]}
    if not trained:
        return None
    made: list[Relation] = []
    for name, spec in tensors.items():
        match = found.get(name)
        if match is None or match["stem"] not in trained:
            made.append(renamed(name, name, spec))
            continue
        leaf = f"linear_fc{match['which']}.{match['part'] or 'weight'}"
        names = [f"{match['stem']}local_experts.{e}.{leaf}" for e in range(spec.shape[0])]
        made.append(turned(name, spec, names, spec.shape[1], spec.shape[2]))
    return Relation.union(made), table.saying("sequential", [_layer(stem) for stem in trained])


def _layer(stem: str) -> str:
    """Return the layer experts are in, as words name it."""
    return f"{'mtp' if stem.startswith('mtp.') else 'layers'}.{numbers(stem)[1][0]}"
