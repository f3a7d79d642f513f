"""Bring an adapter that a framework of ranks saved to PEFT's names, for a model that has Hugging Face's."""

from __future__ import annotations

import json
from dataclasses import replace

from ckptconv.places.places import place
from ckptconv.planning.adapters.adapter import AdapterConfig
from ckptconv.planning.adapters.peft import Lent, prepare
from ckptconv.planning.model import find_architecture, find_config
from ckptconv.planning.names import name_tensors
from ckptconv.plans.checkpoint import Checkpoint, settled
from ckptconv.plans.request import Request
from ckptconv.readers.registry import find_reader, open_checkpoint

__all__ = ["lent_adapter"]

_SAVED = "adapter_model.*"


def lent_adapter(checkpoint: Checkpoint, request: Request) -> Lent | None:
    """Return the adapter that a request adds to a model, if it lies in ranks or a distributed checkpoint.

    Its names are translated by the model's config; rank and alpha are what its own files say.

    Args:
        checkpoint: The model.
        request: What is to be written.

    Raises:
        CkptconvError: if it cannot be read, or does not belong to such a model.
    """
    if request.adapter is None or request.lora == "adapter" or checkpoint.table is not None:
        return None
    folder = place(request.adapter).expanduser()
    if not folder.is_dir() or any(folder.glob(_SAVED)):
        return None
    trained = settled(open_checkpoint(folder))
    if trained.table is None:
        return None
    found = find_config(checkpoint, request.config, needed=True)
    config = str(found.folder) if found is not None and found.folder is not None else request.config
    own = replace(request, lora="adapter", adapter=None, config=config, drop=(), keep=(), rename=None)
    made = prepare(trained, own)
    model = find_architecture(made.checkpoint, own, needed=True)
    named = name_tensors(made.checkpoint, own, model, made.terms)
    said = named.adapter
    values = json.loads(said.content) if said is not None and said.content is not None else {}
    which = find_reader(trained.data).name
    return Lent(folder, named.relation, trained, AdapterConfig(values, folder, f"the {which} save"))
