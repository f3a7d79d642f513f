"""Tell a ``.nemo`` archive, and the folder it was unpacked to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ckptconv.containers.dcp import METADATA

__all__ = ["CONFIG", "FOLDER", "WEIGHTS", "recognise"]

CONFIG: Final = "model_config.yaml"
WEIGHTS: Final = "model_weights.ckpt"
FOLDER: Final = "model_weights/"


def recognise(path: Path) -> bool:
    """Whether a path is what NeMo 1 leaves."""
    if path.is_file():
        return path.suffix == ".nemo"
    if path.name == FOLDER.rstrip("/") and (path.parent / CONFIG).is_file():
        return recognise(path.parent)
    if not path.is_dir() or not (path / CONFIG).is_file():
        return False
    return (
        (path / WEIGHTS).is_file()
        or any(path.glob(f"*_rank_*/{WEIGHTS}"))
        or (path / FOLDER / METADATA).is_file()
        or (path / FOLDER / "metadata.json").is_file()
    )
