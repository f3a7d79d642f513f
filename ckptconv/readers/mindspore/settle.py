"""Give the tensors of a MindSpore checkpoint their meaning: how they are packed, which are mere buffers."""

from __future__ import annotations

from dataclasses import replace

from ckptconv.containers.mindspore import mindspore
from ckptconv.dialects.factors import with_implied
from ckptconv.dialects.mindformers import dialect_of
from ckptconv.dialects.mindformers.entries import beside_weights
from ckptconv.dialects.mindformers.settle import find_run, layouts, settled
from ckptconv.plans.checkpoint import Checkpoint, Note, beside_of
from ckptconv.readers.mindspore.options import MindSporeOptions
from ckptconv.slots.translate import without

__all__ = ["check_sums", "settle"]


def settle(checkpoint: Checkpoint, options: MindSporeOptions) -> Checkpoint:
    """Settle how a checkpoint packs its tensors, and leave out what is no weight.

    Raises:
        UsageError: if several YAML files are beside it.
    """
    states = [n for n in checkpoint.tensors if beside_weights(n) is not None]
    if states:
        checkpoint = replace(checkpoint, relation=without(checkpoint.relation, states, "training states"))
    dialect = dialect_of(checkpoint.tensors)
    if dialect is None:
        return checkpoint
    path, run = find_run(beside_of(checkpoint), options.yaml)
    flags = layouts(options.qkv_layout, options.mlp_layout)
    words, notes = settled(dialect, with_implied(checkpoint.tensors), run, flags)
    buffers = [n for n in checkpoint.tensors if dialect.is_ignored(n)]
    if path is not None:
        notes.insert(0, Note("info", f"the run's YAML is {path}"))
    return replace(
        checkpoint,
        relation=without(checkpoint.relation, buffers, "buffers the model makes itself"),
        table=dialect.table(words),
        arguments=run,
        notes=(*checkpoint.notes, *notes),
        settle=None,
    )


def check_sums(checkpoint: Checkpoint) -> Note:
    """Compare every file of weights with the CRC-32 it holds.

    Raises:
        FormatError: if a file is not what its checksum says.
    """
    paths = sorted({e.path for s in checkpoint.stored.values() for e in s.extents})
    held = sum(mindspore.check_crc(path) for path in paths)
    if held == len(paths):
        return Note("info", f"the CRC-32 of all {held} files is right")
    return Note(
        "warning", f"--check: {len(paths) - held} of {len(paths)} files hold no CRC-32, {held} are right"
    )
