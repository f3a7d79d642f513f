"""Make the seeds of each fuzzing target: small real files, and files that use what real ones seldom do."""

from __future__ import annotations

import collections
import io
import lzma
import pickle
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tensorflow_models import block, entry, number

__all__ = ["CORPUS", "LARGEST", "SMALL", "distributed", "seeds"]

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"
CORPUS = Path(__file__).parent / "corpus"
LARGEST = 24 << 10
"""Bytes of the largest seed."""
SMALL = 4 << 10
"""Bytes of the largest seed where one input takes long: a fuzzer must get through many."""


class _Plain:
    """An object with state."""

    def __init__(self) -> None:
        self.a, self.b = 1, [2.5, "x"]


class _Items(list[int]):
    """A list subclass: appends after a call."""


def _values() -> list[Any]:
    return [
        {"module": {"w": 1.5, b"k": (1, 2, 3, 4)}, 3: None, (1, "a"): {1, 2}, "f": frozenset({"a", 1})},
        collections.OrderedDict(a=1, b=[]),
        collections.defaultdict(list, {"a": [1]}),
        [1 << 70, -5, 1e300, "\u20ac", b"\xff" * 3, bytearray(b"abc"), True, complex(1, 2), 300, 70_000],
        _Plain(),
        _Items([1, 2]),
    ]


def _unpickler() -> Iterator[bytes]:
    for value in _values():
        for protocol in range(6):
            yield pickle.dumps(value, protocol)
    import torch

    for data in _torch():
        if data.startswith(b"PK"):  # zipfile would miss the checksums that were not computed
            yield torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl")
    yield distributed()[0]


def _torch() -> Iterator[bytes]:
    import torch

    tied = torch.arange(6.0)
    values = [
        {"w": torch.ones(2, 3), "b": torch.arange(4, dtype=torch.int64), "t": tied, "u": tied.view(2, 3).t()},
        {"model": {"x": torch.zeros(0, 3), "h": torch.ones(2, dtype=torch.bfloat16)}, "iteration": 3,
         "args": {"a": 1}, "checkpoint_version": 3.0},
        torch.nn.Linear(2, 2),
    ]  # fmt: skip
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # a changed pickle is not refused for its checksum
    try:
        for value in values:
            for zipped in (True, False):
                buffer = io.BytesIO()
                torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
                yield buffer.getvalue()
    finally:
        torch.serialization.set_crc32_options(computed)
    for path in sorted(FIXTURES.glob("deepspeed/*/ckpt/*/*.pt")):
        if path.stat().st_size <= LARGEST:
            yield path.read_bytes()


def _protobuf() -> Iterator[bytes]:
    for path in sorted(FIXTURES.glob("mindspore/**/*.ckpt")):
        if path.stat().st_size <= LARGEST // 2:
            yield path.read_bytes()
    for path in sorted(FIXTURES.glob("mindspore/**/*strategy*.json")):
        yield path.read_bytes()


def _safetensors() -> Iterator[bytes]:
    from safetensors.numpy import save

    yield save({"a": np.ones((2, 3), np.float32), "b": np.zeros(3, np.int8)}, {"format": "pt"})
    yield save({"": np.ones((), np.float16), "\u20ac": np.ones((1, 0, 4), np.uint64)})
    yield save({})
    for path in sorted(FIXTURES.glob("mindspore/raw_*/*.safetensors")):
        if path.stat().st_size <= LARGEST // 2:
            yield path.read_bytes()


@cache
def distributed() -> tuple[bytes, bytes]:
    """Save a small distributed checkpoint; return its metadata and its one file of records."""
    import torch
    import torch.distributed.checkpoint as saver

    state = {"a": torch.arange(6.0).view(2, 3), "b": {"c": torch.ones(2, dtype=torch.bfloat16)}, "step": 7}
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saver.save(state, checkpoint_id=folder, no_dist=True)
        return (Path(folder) / ".metadata").read_bytes(), (Path(folder) / "__0_0.distcp").read_bytes()


def _dcp() -> Iterator[bytes]:
    yield distributed()[0]
    for name in ("dcp.tar.xz", "megatron_dist/cases.tar.xz"):
        with lzma.open(FIXTURES / name) as packed, tarfile.open(fileobj=packed) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file and member.name.endswith("/.metadata") and member.size <= LARGEST:
                    yield file.read()


def _hdf5() -> Iterator[bytes]:
    for name, data in _tensorflow():
        if name.endswith(".h5"):
            yield data


def _tf1() -> Iterator[bytes]:
    yield block([(b"", number(1, 1)), (b"bert/pooler/dense/kernel", entry((2, 8), 0, 64))])[:-5]
    yield block([(b"", number(1, 1)), (b"a", entry((), 0, 8, dtype=9)), (b"b", entry((3,), 8, 12))])[:-5]
    for name, data in _tensorflow():
        if name.endswith(".index"):
            yield data


def _tensorflow() -> Iterator[tuple[str, bytes]]:
    with lzma.open(FIXTURES / "tensorflow" / "cases.tar.xz") as packed, tarfile.open(fileobj=packed) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file and member.size <= LARGEST:
                yield member.name, file.read()


_SEEDS = {
    "unpickler": _unpickler,
    "torch": _torch,
    "protobuf": _protobuf,
    "safetensors": _safetensors,
    "dcp": _dcp,
    "hdf5": _hdf5,
    "tf1": _tf1,
}


def seeds(target: str, largest: int = LARGEST) -> list[bytes]:
    """Return the seeds of a target, with the inputs that once found something."""
    found = [p.read_bytes() for p in sorted((CORPUS / target).glob("*"))]
    return found + sorted({s for s in _SEEDS[target]() if len(s) <= largest}, key=len)
