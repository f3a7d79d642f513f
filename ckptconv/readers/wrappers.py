"""Take off the names that wrappers of a module put around its parameters' own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.relations.rename import under_names

__all__ = ["unwrap"]

# torch.compile (torch 2.13, _dynamo/eval_frame.py), activation checkpointing and FSDP
# (distributed/algorithms/_checkpoint/checkpoint_wrapper.py, distributed/fsdp/_common_utils.py): anywhere.
_ANYWHERE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# DistributedDataParallel (nn/parallel/distributed.py): before every name, or it is the model's own.
_AROUND_ALL = "module."


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Return each name without wrappers."""
    found = {n: _ANYWHERE.sub("", n) if "_module." in n or "_mod." in n else n for n in names}
    while found and all(n.startswith(_AROUND_ALL) for n in found.values()):
        found = {k: n.removeprefix(_AROUND_ALL) for k, n in found.items()}
    return found


def unwrap(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with bare names, and a note if that changed any.

    Raises:
        PlanError: if two tensors would get one name.
    """
    relation = checkpoint.relation
    bare = _bare([*relation.right, *checkpoint.aliases, *checkpoint.unresolved])
    changed = [n for n, new in bare.items() if n != new]
    if not changed:
        return checkpoint
    note = Note("info", f"wrappers taken off {len(changed)} names: {changed[0]} is {bare[changed[0]]}")
    return replace(
        checkpoint,
        relation=relation.compose(under_names(relation.right, bare, checkpoint.data)),
        via={bare[n]: d for n, d in checkpoint.via.items()},
        aliases={bare[a]: bare[b] for a, b in checkpoint.aliases.items()},
        buffers=frozenset(bare.get(b, b) for b in checkpoint.buffers),
        unresolved=tuple(bare[n] for n in checkpoint.unresolved),
        notes=(*checkpoint.notes, note),
    )
