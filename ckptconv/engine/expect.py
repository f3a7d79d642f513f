"""Tell which bytes of the sources an output file needs, so that reading ahead reads nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckptconv.places.places import is_remote
from ckptconv.plans.plan import OutFile, Plan
from ckptconv.relations.pair import Pair
from ckptconv.relations.terms import operands

__all__ = ["needed"]

_GAP = 1 << 20  # less than that between two ranges is read with them


def needed(
    plan: Plan, file: OutFile, pairs: Mapping[str, Sequence[Pair]]
) -> dict[str, list[tuple[int, int]]]:
    """Return byte ranges by the URL they are of, in order; files on disk are left out.

    Args:
        plan: The plan.
        file: The file of the plan.
        pairs: The plan's pairs by tensor.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    names = [t.name for t in file.layout.tensors]
    for name in (*names, *operands(plan.terms, names)):
        for pair in pairs.get(name, ()):
            stored = plan.stored[pair.left.tensor]
            if any(is_remote(path) for path in stored.paths()):
                for path, start, count in stored.spans(pair.left.first, pair.left.last + 1):
                    if not is_remote(path):
                        continue
                    found.setdefault(path, []).append((start, start + count))
    return {path: _merged(sorted(ranges)) for path, ranges in found.items()}


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and start - merged[-1][1] < _GAP:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
