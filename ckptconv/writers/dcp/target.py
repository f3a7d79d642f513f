"""Lay out named tensors as a plain PyTorch distributed checkpoint."""

from __future__ import annotations

from ckptconv.containers.base import FileLayout
from ckptconv.containers.dcp import METADATA
from ckptconv.containers.dcp.dcp_out import DcpLayout, OutChunk, layout
from ckptconv.dtypes import dtype as dtype_named
from ckptconv.plans.checkpoint import Checkpoint
from ckptconv.plans.plan import OutFile
from ckptconv.plans.request import Request
from ckptconv.plans.target import Laid, Target
from ckptconv.writers.dcp.options import DcpOptions

__all__ = ["as_files", "lay_out"]


def lay_out(request: Request, model: Laid, like: Checkpoint | None) -> Target:
    """Lay out a flat state dict for ``torch.distributed.checkpoint.load``; each tensor is one record."""
    how: DcpOptions = request.writing
    chunks = [
        OutChunk(n, n, dtype_named(s.dtype), s.shape, (0,) * len(s.shape), s.shape)
        for n, s in model.tensors.items()
    ]
    files = as_files(layout(chunks, limit=how.max_shard_size))
    return Target(lambda written: files)


def as_files(made: DcpLayout, prefix: str = "") -> tuple[OutFile, ...]:
    """Return the files of a checkpoint, the metadata last."""
    content = FileLayout(len(made.metadata), ((0, made.metadata),), ())
    files = [OutFile(prefix + name, "bin", laid) for name, laid in made.files.items()]
    return (*files, OutFile(prefix + METADATA, "bin", content))
