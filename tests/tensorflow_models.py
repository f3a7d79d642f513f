"""Unpack models that TensorFlow wrote, name variables as its classes do, make an index as its saver does."""

from __future__ import annotations

import json
import lzma
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

from ckptconv.containers.tf1 import crc32c

__all__ = [
    "CASES", "block", "class_names", "entry", "nested", "number", "sealed", "table", "unpack", "varint",
]  # fmt: skip

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


def varint(value: int) -> bytes:
    """Return a number as LevelDB and protobuf write it."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    """Return a field of a message that is a number."""
    return varint(field << 3) + varint(value)


def nested(field: int, raw: bytes) -> bytes:
    """Return a field of a message that has a length."""
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def entry(shape: tuple[int, ...], offset: int, size: int, dtype: int = 1, shard: int = 0) -> bytes:
    """Return what an index says of a variable."""
    dims = b"".join(nested(2, number(1, n)) for n in shape)
    return number(1, dtype) + nested(2, dims) + number(3, shard) + number(4, offset) + number(5, size)


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Return a block of a table, with its trailer."""
    body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in entries)
    return sealed(body + (0).to_bytes(4, "little") + (1).to_bytes(4, "little"))


def sealed(body: bytes) -> bytes:
    """Return a block's content with its trailer."""
    crc = crc32c(body + b"\0")
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return body + b"\0" + masked.to_bytes(4, "little")


def table(blocks: list[bytes], handles: list[tuple[int, int]] | None = None) -> bytes:
    """Make an index; ``handles`` say where its blocks are, if not where they are."""
    out, found = b"", []
    for raw in blocks:
        found.append((len(out), len(raw) - 5))
        out += raw
    index = block([(b"z" * (i + 1), varint(a) + varint(n)) for i, (a, n) in enumerate(handles or found)])
    at = len(out)
    footer = varint(0) + varint(0) + varint(at) + varint(len(index) - 5)
    return out + index + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
