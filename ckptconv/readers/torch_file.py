"""Read a plain ``.pt``, ``.pth`` or ``.bin`` file: a state dict, or a module pickled whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.containers.base import FileTensor
from ckptconv.containers.torch.namespaces import plain
from ckptconv.containers.torch.statedict import state_dict_of
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.plans.builder import GraphBuilder
from ckptconv.plans.checkpoint import Checkpoint, Note
from ckptconv.plans.options import Text, option
from ckptconv.readers.reader import PANEL, Reader
from ckptconv.records import dataclass

__all__ = ["READER", "named_tensors"]

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


def named_tensors(graph: GraphBuilder, tensors: dict[str, FileTensor]) -> dict[str, str]:
    """Add tensors under their own names; names of the same elements become aliases of the first.

    Returns:
        Alias to kept name.
    """
    first: dict[object, str] = {}
    aliases = {}
    for name, t in tensors.items():
        kept = first.setdefault((t.path, t.offset, t.shape, t.stride, t.dtype), name) if t.numel else name
        if kept == name:
            graph.whole(f"{os.path.basename(t.path)}/{name}", t, name)
        else:
            aliases[name] = kept
    return aliases


def _recognise(path: Path) -> bool:
    return path.is_file() and path.suffix in _SUFFIXES


@dataclass(frozen=True)
class TorchFileOptions:
    """Own ``--key``."""

    key: str | None = option(
        Text("NAME"),
        "Where the weights lie in the file: ema, state.net, or a place in a list.",
        panel=PANEL,
    )


def _open(path: Path, options: TorchFileOptions) -> Checkpoint:
    file = open_torch(path)
    tensors, beside = state_dict_of(file.root, file.path, options.key)
    graph = GraphBuilder()
    graph.touch(path)
    aliases = named_tensors(graph, tensors)
    return Checkpoint(
        root=path.parent,
        data=path,
        producer="torch",
        format=f"torch file ({file.container})",
        weights="model",
        stored=graph.stored,
        relation=graph.relation(),
        files=graph.files,
        aliases=aliases,
        config=_config(file.root),
        notes=tuple(Note("info", text) for text in beside),
    )


def _config(root: object) -> Mapping[str, Any]:
    """Return the config.json that Composer keeps inside (0.32, ``models/huggingface.py``, get_metadata)."""
    value = root
    for key in ("state", "integrations", "huggingface", "model", "config", "content"):
        value = value.get(key) if type(value) is dict else None
    found = plain(value)
    return found if type(found) is dict and all(type(k) is str for k in found) else {}


READER = Reader("torch", _recognise, _open, TorchFileOptions)
