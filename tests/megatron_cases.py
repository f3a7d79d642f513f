"""Find and unpack the checkpoints of ``fixtures/megatron``, and read ranks without the package under test.

A case is a folder of ranks beside the model it holds (``hf/``) and, where there are any, its logits.
``CKPTCONV_MEGATRON_CASES=DIR[:DIR]`` takes other folders of cases instead.
"""

from __future__ import annotations

import os
import pickle
import tarfile
import tempfile
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["Case", "find_cases", "flat", "model_of", "rank_files", "read_rank_file", "unpacked"]

FOLDER = Path(__file__).parent.parent / "fixtures" / "megatron"
_TRACKER = "latest_checkpointed_iteration.txt"
_OTHER = os.environ.get("CKPTCONV_MEGATRON_CASES")


@dataclass(frozen=True, slots=True)
class Case:
    """Name a checkpoint: its archive (or folder), and its path in there, ``model/ranks``."""

    archive: str
    path: str

    @property
    def run(self) -> Path:
        """The run's folder."""
        return unpacked(self.archive) / self.path

    @property
    def hf(self) -> Path:
        """The true model."""
        return self.run.parent / "hf"

    @property
    def logits(self) -> Path:
        """Token ids and logits of the true model; not every case has them."""
        return self.run.parent / "logits.pt"

    def __str__(self) -> str:
        return self.path.removesuffix("/shards").replace("/", "-")


@cache
def unpacked(archive: str) -> Path:
    """Unpack an archive of the repository, once in a run of the tests; a folder is its own."""
    if not archive.endswith(".tar.xz"):
        return Path(archive)
    folder = tempfile.TemporaryDirectory(prefix="ckptconv-megatron-")
    _KEPT.append(folder)
    with tarfile.open(FOLDER / archive) as tar:
        tar.extractall(folder.name, filter="data")
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def find_cases() -> list[Case]:
    """List the cases."""
    if _OTHER:
        return [
            Case(root, str(tracker.parent.relative_to(root)))
            for root in _OTHER.split(":")
            for tracker in sorted(Path(root).rglob(_TRACKER))
            if any(tracker.parent.glob("*/mp_rank_*/*.pt")) and (tracker.parent.parent / "hf").is_dir()
            if "lora" not in str(tracker)
        ]
    lines = (FOLDER / "cases.txt").read_text().split("\n")
    return [Case(*line.split()) for line in lines if line]


class _Unpickler(pickle.Unpickler):
    """Load torch's objects and the standard library's; stand in for every framework's own class."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in {"torch", "collections", "argparse", "numpy", "_codecs", "pathlib", "_io"}:
            return super().find_class(module, name)
        return type(name, (_Stub,), {"__module__": module})


class _Stub:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


_PICKLE: Any = types.ModuleType("pickle")
_PICKLE.Unpickler = _Unpickler
_PICKLE.load = lambda file, **options: _Unpickler(file, **options).load()


def read_rank_file(path: Path) -> dict[str, Any]:
    """Load a rank's file with torch itself."""
    loaded = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    assert isinstance(loaded, dict)
    return loaded


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the keys of nested dictionaries by dots."""
    return dict(_flat(tree, prefix))


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def model_of(rank: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a rank's file holds under ``model``, ``model0``, ..., by joined keys."""
    return flat({k: v for k, v in rank.items() if k.startswith("model")})


def rank_files(run: Path) -> list[str]:
    """List the files of the ranks below a run's folder."""
    return sorted(p.relative_to(run).as_posix() for p in run.glob("*/mp_rank_*/*.pt"))
