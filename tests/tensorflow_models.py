"""Unpack the models that TensorFlow wrote, and name variables as its classes do."""

from __future__ import annotations

import json
import lzma
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["CASES", "class_names", "unpack"]

FOLDER = Path(__file__).parent.parent / "fixtures" / "tensorflow"

CASES = (
    "albert-mlm", "albert-pre-tf1", "bert-base", "bert-mlm", "bert-tf1-ckpt", "clip", "electra-disc-tf1",
    "electra-gen-tf1", "gpt2-sharded", "marian", "mistral-st", "mpnet-mlm", "resnet", "swin-image",
    "wav2vec2-ctc",
)  # fmt: skip


def unpack(target: Path) -> Path:
    """Unpack all cases; each has ``source``, what TensorFlow wrote, and ``hf``, the true torch model."""
    with tarfile.open(FOLDER / "cases.tar.xz") as tar:
        tar.extractall(target, filter="data")
    return target / "tensorflow"


@cache
def class_names() -> dict[str, Any]:
    """Return names and shapes of each class's variables, and those its torch class saves."""
    found: dict[str, Any] = json.loads(lzma.decompress((FOLDER / "names.json.xz").read_bytes()))
    return found
