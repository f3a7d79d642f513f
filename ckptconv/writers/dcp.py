"""Lay out named tensors as a plain PyTorch distributed checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from ckptconv.containers.base import FileLayout
from ckptconv.containers.dcp.dcp import METADATA
from ckptconv.containers.dcp.dcp_out import DcpLayout, OutChunk, layout
from ckptconv.dtypes import DType
from ckptconv.plans.plan import OutFile

__all__ = ["as_files", "layout_dcp"]


def layout_dcp(tensors: Sequence[tuple[str, DType, tuple[int, ...]]], limit: int) -> tuple[OutFile, ...]:
    """Lay out a flat state dict for ``torch.distributed.checkpoint.load``; each tensor is one record.

    Args:
        tensors: Name, element type and shape of each.
        limit: The most bytes of a file, unless one tensor has more.
    """
    chunks = [OutChunk(n, n, dtype, shape, (0,) * len(shape), shape) for n, dtype, shape in tensors]
    return as_files(layout(chunks, limit=limit))


def as_files(made: DcpLayout, prefix: str = "") -> tuple[OutFile, ...]:
    """Return the files of a checkpoint, the metadata last."""
    content = FileLayout(len(made.metadata), ((0, made.metadata),), ())
    files = [OutFile(prefix + name, "bin", laid) for name, laid in made.files.items()]
    return (*files, OutFile(prefix + METADATA, "bin", content))
