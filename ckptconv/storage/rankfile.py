"""Open what Megatron saves for one rank: ``model_optim_rng.pt``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckptconv.errors import FormatError
from ckptconv.storage.base import FileTensor
from ckptconv.storage.namespaces import plain
from ckptconv.storage.torchfile import open_torch

__all__ = ["RankFile", "read_rank", "tensor_key"]

_CHUNK: Final = re.compile(r"model([0-9]{0,4})")
_MAX_LEVELS: Final = 50
_MAX_DICTS: Final = 1_000_000
_MAX_NAME: Final = 4096


@dataclass(frozen=True, slots=True)
class RankFile:
    """Hold what one rank's file says.

    Attributes:
        path: The file.
        root: All it holds.
        arguments: The training arguments as simple values; empty where there are none.
        version: ``checkpoint_version``; files without one are of version 0.
        iteration: Training step; None where it does not say.
        chunks: The model's tensors by virtual chunk and name; a chunk of no-op layers alone has none.
    """

    path: Path
    root: Mapping[str, Any]
    arguments: Mapping[str, Any]
    version: float
    iteration: int | None
    chunks: Mapping[int, Mapping[str, FileTensor]]

    def key(self, folder: str, chunk: int, name: str) -> str:
        """Name a tensor of this file, whose rank has this folder."""
        return tensor_key(folder, chunk, len(self.chunks), name)


def tensor_key(folder: str, chunk: int, chunks: int, name: str) -> str:
    """Name a tensor of a rank: its folder, its virtual chunk if there are several, its name."""
    return f"{folder}:{name}" if chunks == 1 else f"{folder}:model{chunk}.{name}"


def tensors_of(model: Mapping[str, Any]) -> Iterator[tuple[str, FileTensor]]:
    """Yield the tensors of a model's (nested) dict by dotted names; ``_extra_state`` is none of them.

    Raises:
        FormatError: if the dicts hold themselves or one another without end.
    """
    # Each level is an iterator, so that tensors come in the order of the file.
    levels = [("", iter(model.items()))]
    visits = 0
    while levels:
        prefix, items = levels[-1]
        for key, value in items:
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                visits += 1
                if len(levels) > _MAX_LEVELS or visits > _MAX_DICTS or len(name) > _MAX_NAME:
                    raise FormatError("the model's dicts are nested without end")
                levels.append((f"{name}.", iter(value.items())))
                break
            if isinstance(value, FileTensor) and not name.endswith("_extra_state"):
                yield name, value
        else:
            levels.pop()


def read_rank(path: Path, *, exact: bool = False) -> RankFile:
    """Open one rank's file.

    Args:
        path: The file.
        exact: Keep what only matters where the file is written again.

    Raises:
        FormatError: if it does not hold a model.
    """
    root = open_torch(path, exact=exact).root
    if not isinstance(root, dict):
        raise FormatError("no dict of a checkpoint", where=path)
    arguments = plain(root["args"]) if "args" in root else {}
    names = [k for k in root if type(k) is str and _CHUNK.fullmatch(k)]
    chunks = {int(k[5:] or 0): dict(tensors_of(root[k])) for k in sorted(names) if isinstance(root[k], dict)}
    if not chunks or set(chunks) != set(range(len(chunks))):
        raise FormatError(
            f"there is no model in it: it holds {', '.join(map(str, root))[:200]}",
            where=path,
            hint="checkpoints without weights cannot be converted",
        )
    iteration = root.get("iteration", root.get("total_iters"))
    version = root.get("checkpoint_version", 0)
    return RankFile(
        path,
        root,
        arguments if isinstance(arguments, dict) else {},
        float(version) if isinstance(version, (int, float)) else 0.0,
        iteration if isinstance(iteration, int) else None,
        chunks,
    )
