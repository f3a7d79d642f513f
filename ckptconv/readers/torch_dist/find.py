"""Find the saved iteration in what a user names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from ckptconv.containers.dcp import METADATA
from ckptconv.dialects.saved import COMMON
from ckptconv.errors import FormatError
from ckptconv.places.regular import read_bytes, read_head
from ckptconv.readers.dcp.find import lacking_files
from ckptconv.readers.megatron.find import TRACKER, iteration_folder
from ckptconv.records import dataclass

__all__ = ["DAMAGED", "MARKER", "Located", "find", "lacking", "recognise"]

MARKER: Final = "metadata.json"


@dataclass(frozen=True, slots=True)
class Located:
    """Locate one saved iteration; ``backend`` is empty where no ``metadata.json`` names one."""

    root: Path
    data: Path
    backend: str


DAMAGED: Final = "a damaged marker"


def _backend(folder: Path) -> str | None:
    """Return the backend a folder's marker names, ``""`` for Megatron's plain DCP, None if it is neither."""
    marker = folder / MARKER
    if marker.is_file():
        try:
            found = json.loads(read_head(marker, 65536))
        except (ValueError, RecursionError):
            return DAMAGED if (folder / METADATA).is_file() else None
        name = found.get("sharded_backend") if isinstance(found, dict) else None
        return name if isinstance(name, str) and name else None
    path = folder / METADATA
    return "" if path.is_file() and _is_megatron(read_bytes(path)) else None


_CORE: Final = re.compile(rb"model\.(?:module\.)*(?:language_model\.)?(?:decoder\.layers|embedding)\.")


def _is_megatron(metadata: bytes) -> bool:
    """Whether a pickle holds the keys of Megatron-LM's save, or of Megatron-Bridge's, which has no ``args``.

    Megatron-LM core_v0.16.1, ``training/checkpointing.py``; Megatron-Bridge 0.6.2,
    ``training/checkpointing.py`` (``fsdp_dtensor``).
    """
    args = b"\x04args" in metadata or b"\x04\0\0\0args" in metadata
    return b"checkpoint_version" in metadata and (args or _CORE.search(metadata) is not None)


def find(path: Path) -> Located | None:
    """Find the iteration meant by a path; None if there is none."""
    folder = path.parent if path.is_file() else path
    if path.is_file() and path.name not in (METADATA, MARKER, COMMON) and path.suffix != ".distcp":
        return None
    data: Path | None = folder
    backend = _backend(folder)
    if backend is None and not path.is_file():
        data = iteration_folder(path)
        backend = _backend(data) if data is not None else None
    if data is None or backend is None:
        return None
    return Located(data.parent if (data.parent / TRACKER).is_file() else folder, data, backend)


def recognise(path: Path) -> bool:
    """Whether a path is a distributed checkpoint of Megatron, or a run of them."""
    try:
        return find(path) is not None
    except FormatError:
        return False


def lacking(path: Path) -> str | None:
    """Say what keeps the newest save of a run from being read."""
    found = find(path)
    return None if found is None else lacking_files(found.data)
