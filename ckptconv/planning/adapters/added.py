"""Tell rows that were added to an embedding from those its model came with, by how large they are.

``resize_token_embeddings`` draws new rows with the standard deviation of a fresh model, or all but at the
mean of the others (transformers 5.23, ``modeling_utils.py``). LoRA does not train them, so they stay so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np

from ckptconv.containers.base import FileLayout, Placed
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.dtypes import numpy_dtype
from ckptconv.engine.buffers import Buffers
from ckptconv.engine.fill import Filler, pairs_by_tensor
from ckptconv.places.files import SourceFiles
from ckptconv.plans.assemble import plan_of
from ckptconv.plans.casting import cast_chains
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import OutFile

__all__ = ["rows_added"]

_LAST: Final = 512  # rows at the end that are looked at, and as many before them
_LEAST: Final = 32
_APART: Final = 6.0  # standard deviations of a mean

if TYPE_CHECKING:
    import numpy.typing as npt

    Norms = npt.NDArray[np.float64]


def rows_added(checkpoint: Checkpoint, name: str) -> int:
    """Return how many rows at the end of a tensor are unlike the others; some thousand rows are read."""
    spec = checkpoint.relation.right[name]
    if len(spec.shape) != 2 or spec.shape[0] < 2 * _LEAST or dtype_named(spec.dtype).kind != "float":
        return 0
    rows = spec.shape[0]
    end = min(_LAST, rows // 4)
    spread = np.unique(np.linspace(0, rows - end - 1, num=min(_LAST, rows - end)).astype(np.int64))
    norms = _norms(checkpoint, name, [*map(int, spread), *range(rows - end, rows)])
    return _unlike(norms[: len(spread)], norms[len(spread) :])


def _unlike(others: Norms, last: Norms) -> int:
    """Return how many of the last values do not look like the others."""
    middle = np.median(others)
    spread = 1.4826 * np.median(np.abs(others - middle))
    if not spread > 0:
        return 0
    counts = np.arange(1, len(last) + 1)
    apart = np.abs(np.cumsum(last[::-1] - middle)) / (spread * np.sqrt(counts))
    best = int(np.argmax(apart))
    return int(counts[best]) if apart[best] > _APART else 0


def _norms(checkpoint: Checkpoint, name: str, rows: Iterable[int]) -> Norms:
    """Return the logarithms of the lengths of some rows."""
    relation = checkpoint.relation.select([name])
    spec = relation.right[name]
    dtype = dtype_named(spec.dtype)
    width = spec.shape[1] * dtype.itemsize
    size = spec.shape[0] * width
    file = OutFile(name, "safetensors", FileLayout(size, (), (Placed(name, dtype, spec.shape, 0),)))
    casts = cast_chains(checkpoint, relation, {n: d for n, d in checkpoint.via.items() if n == name})
    plan = plan_of(checkpoint, relation, casts, [file], {})
    found = []
    with SourceFiles(plan.inputs) as sources:
        filler, buffers = Filler(plan, file, sources, pairs_by_tensor(relation)), Buffers()
        for row in rows:
            raw = filler.fill(row * width, (row + 1) * width, buffers)[0].tobytes()
            values = np.frombuffer(raw, numpy_dtype(dtype)).astype(np.float64)
            found.append(float(np.sqrt(np.square(values).sum())))
    return np.log(np.array(found) + 1e-12)
