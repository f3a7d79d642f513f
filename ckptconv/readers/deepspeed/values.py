"""Find which parameters a flat run of masters holds, by the 16-bit values that the masters round to.

Where the files do not say the order, or say one that is not that of the run, the values themselves do: after
every training step each 16-bit weight is its master, rounded. Optimizers are given parameters in the module's
order, or in several groups each in that order, so a run is read as such a sequence: the parameters in their
order, some of them left out. Norms that are still all ones look alike; they go where they leave the fewest
gaps, and in no such order they are not told apart. What is found is compared in full while it is converted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

import numpy as np

from ckptconv.containers.base import FileTensor
from ckptconv.containers.stored import Stored
from ckptconv.readers.sample import Sampler
from ckptconv.records import dataclass

__all__ = ["Placed", "Wanted", "find_by_values", "is_proven"]

_SAMPLED: Final = 64  # elements compared at each end of a tensor
_DISTINCT: Final = 4  # values that make a tensor like no other
_MAX_PATHS: Final = 64  # ways to read a run that are followed at once

Placed = tuple[str, tuple[int, ...], int]
"""Name and shape of a parameter, and the element of the run it begins at."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Name a parameter that may be in a run, and the tensors one of which its master rounds to."""

    name: str
    shape: tuple[int, ...]
    witnesses: tuple[FileTensor, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Path:
    """A way to read a run up to some element: what lies there, and how often parameters were left out."""

    gaps: int
    last: int
    before: _Path | None = None
    start: int = 0


def is_proven(
    run: Stored, placed: Sequence[Placed], wanted: Mapping[str, Wanted], sampler: Sampler, *, padding: int
) -> bool:
    """Whether every parameter, where it is said to lie, rounds to its 16-bit weights, and padding follows."""
    end = max((at + prod(shape) for _, shape, at in placed), default=0)
    if end > run.numel or not _ends_at(run, end, padding, sampler):
        return False
    return all(
        name in wanted and _is_at(run, at, wanted[name], sampler) for name, shape, at in placed if prod(shape)
    )


def find_by_values(
    run: Stored, wanted: Sequence[Wanted], sampler: Sampler, *, padding: int
) -> list[Placed] | None:
    """Find the parameters a run holds, from its first element on, or None if it cannot be read.

    Args:
        run: The masters.
        wanted: What may be in it, in the module's order.
        sampler: Reads the elements that decide.
        padding: The most elements after the last parameter.
    """
    wanted = [w for w in wanted if w.numel and w.witnesses]
    return _in_order(run, wanted, sampler, padding) or _in_any_order(run, wanted, sampler, padding)


def _in_order(run: Stored, wanted: Sequence[Wanted], sampler: Sampler, padding: int) -> list[Placed] | None:
    """Read a run as parameters in order, those that are not in it left out."""
    paths = {0: _Path(0, -1)}
    for i, candidate in enumerate(wanted):
        reached: dict[int, _Path] = {}
        for at, path in paths.items():
            if at + candidate.numel <= run.numel and _is_at(run, at, candidate, sampler):
                reached[at + candidate.numel] = _Path(path.gaps + (path.last != i - 1), i, path, at)
        if not reached:
            continue
        if _is_distinct(candidate, sampler):
            paths = reached  # nothing else looks like it, so all ways lead through here
            continue
        for at, path in reached.items():
            if at not in paths or path.gaps < paths[at].gaps:
                paths[at] = path
        if len(paths) > _MAX_PATHS:
            paths = {at: paths[at] for at in sorted(paths)[-_MAX_PATHS:]}
    ends = [at for at in paths if _ends_at(run, at, padding, sampler)]
    if not ends:
        return None
    best: _Path | None = paths[min(ends, key=lambda at: (at != run.numel, paths[at].gaps, -at))]
    out: list[Placed] = []
    while best is not None and best.last >= 0:
        out.append((wanted[best.last].name, wanted[best.last].shape, best.start))
        best = best.before
    return out[::-1]


def _in_any_order(
    run: Stored, wanted: Sequence[Wanted], sampler: Sampler, padding: int
) -> list[Placed] | None:
    """Read a run as parameters in whatever order; where several would do, nothing tells which it is."""
    out: list[Placed] = []
    left = {w.name: w for w in wanted}
    at = 0
    while left and at < run.numel:
        room = run.numel - at
        fits = (w for w in left.values() if w.numel <= room and _is_at(run, at, w, sampler))
        found = next(fits, None)
        if found is None:
            break
        if not _is_distinct(found, sampler) and next(fits, None) is not None:
            return None
        del left[found.name]
        out.append((found.name, found.shape, at))
        at += found.numel
    return out if _ends_at(run, at, padding, sampler) else None


def _ends_at(run: Stored, at: int, padding: int, sampler: Sampler) -> bool:
    """Whether nothing but padding, which is zero, follows."""
    if run.numel - padding > at:
        return False
    return not sampler.elements(run, at, min(run.numel, at + _SAMPLED)).any()


def _is_at(run: Stored, at: int, candidate: Wanted, sampler: Sampler) -> bool:
    return any(sampler.apart(run, at, w, count=_SAMPLED) is None for w in candidate.witnesses)


def _is_distinct(candidate: Wanted, sampler: Sampler) -> bool:
    """Whether a tensor has values enough to be told from every other."""
    tensor = candidate.witnesses[0]
    values = sampler.elements(tensor, 0, min(_SAMPLED, tensor.numel))
    return len(np.unique(values.view(f"u{tensor.dtype.itemsize}"))) >= _DISTINCT
