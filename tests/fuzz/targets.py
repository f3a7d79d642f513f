"""Feed bytes to each parser as a file would: what comes out is a result that holds, or a CkptconvError."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ckptconv.assets.config import read_config
from ckptconv.containers.base import FileTensor
from ckptconv.containers.dcp.dcp import METADATA, DcpFolder, open_dcp
from ckptconv.containers.hdf5 import open_hdf5
from ckptconv.containers.mindspore.mindspore import check_crc, open_mindspore
from ckptconv.containers.safetensors import read_header
from ckptconv.containers.stored import Stored, from_file_tensor
from ckptconv.containers.tf1 import open_bundle
from ckptconv.containers.torch import inert
from ckptconv.containers.torch.rankfile import read_rank
from ckptconv.containers.torch.statedict import state_dict_of
from ckptconv.containers.torch.torchfile import open_torch
from ckptconv.dialects.mindformers.strategy import read_strategies
from ckptconv.errors import CkptconvError
from ckptconv.facts.facts import read_facts
from ckptconv.facts.mindformers import read_run, run_facts
from ckptconv.facts.reverse import Form, arguments_from
from ckptconv.facts.typed import typed_config
from ckptconv.facts.value import Fact
from ckptconv.families import find_family
from ckptconv.families.config import config_from, facts_of
from ckptconv.families.detect import fitting, observed
from ckptconv.places.jsonfile import read_json
from ckptconv.places.yamlfile import read_yaml
from ckptconv.readers.registry import open_checkpoint
from fuzz.seeds import distributed
from tensorflow_models import sealed, table

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], object]

_SHM = Path("/dev/shm")
_FOLDER = tempfile.TemporaryDirectory(prefix="ckptconv-fuzz-", dir=_SHM if _SHM.is_dir() else None)


def _file(name: str, data: bytes) -> Path:
    """Write the one file that is parsed, over the one before it."""
    path = Path(_FOLDER.name) / name
    with open(path, "wb", buffering=0) as file:
        file.write(data)
    return path


def _inside(extents: Iterable[tuple[int, int]], size: int) -> None:
    """Assert that located bytes are in the file."""
    for offset, length in extents:
        assert offset >= 0 and length >= 0 and (length == 0 or offset + length <= size), (offset, length)


def _ranges(stored: Stored) -> list[tuple[int, int]]:
    return [(offset, n) for _, offset, n in stored.spans(0, stored.numel)]


def _reachable(tensor: FileTensor) -> tuple[int, int]:
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    return tensor.offset, reach * tensor.dtype.itemsize if tensor.numel else 0


def _runs(tensor: FileTensor, size: int) -> None:
    _inside(_ranges(from_file_tensor(tensor)), size)


def _outcome(parse: Callable[[], object]) -> type[CkptconvError] | None:
    """Return the kind of error a parser raised; any other exception is the finding."""
    try:
        parse()
    except CkptconvError as error:
        assert error.message and str(error)
        return type(error)
    return None


def unpickle(data: bytes) -> None:
    """Read a pickle from memory and from a file, for reading and to be written again."""
    for exact in (False, True):
        whole = _outcome(partial(inert.load, data, exact=exact))
        assert _outcome(partial(inert.load_at, io.BytesIO(data), 0, exact=exact)) is whole


def torch_file(data: bytes) -> None:
    """Open what ``torch.save`` writes, find its weights, open it as a rank's file."""
    path = _file("model.pt", data)

    def weights() -> None:
        tensors, _ = state_dict_of(open_torch(path).root, str(path))
        for tensor in tensors.values():
            _inside([_reachable(tensor)], len(data))
            _outcome(partial(_runs, tensor, len(data)))

    _outcome(weights)
    _outcome(lambda: read_rank(path, exact=True))


def protobuf(data: bytes) -> None:
    """Open a MindSpore ``.ckpt``, and the same bytes as a strategy file."""
    path = _file("model.ckpt", data)

    def tensors() -> None:
        for stored in open_mindspore(path).tensors.values():
            assert stored.shape == () or prod(stored.shape) == stored.numel
            _inside(_ranges(stored), len(data))

    if _outcome(tensors) is None and len(data) < 1 << 20:
        _outcome(lambda: check_crc(path))
    _outcome(lambda: read_strategies([path]))
    _outcome(lambda: read_strategies([_file("strategy.json", data)]))


def safetensors(data: bytes) -> None:
    """Read a header; what is accepted, the safetensors library accepts, and it sees the same tensors."""
    path = _file("model.safetensors", data)

    def header() -> None:
        tensors, metadata = read_header(path)
        for tensor in tensors.values():
            _inside([(tensor.offset, tensor.nbytes)], len(data))
        _same_as_library(path, tensors, metadata)

    _outcome(header)
    _outcome(lambda: open_mindspore(path))


def _same_as_library(path: Path, tensors: dict[str, FileTensor], metadata: dict[str, str]) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == set(tensors)
        assert (file.metadata() or {}) == metadata
        raw = path.read_bytes()
        for name, tensor in tensors.items():
            part = file.get_slice(name)
            assert tuple(part.get_shape()) == tensor.shape
            if tensor.dtype.name in ("float32", "int64", "uint8", "float16") and tensor.numel:
                found = file.get_tensor(name)
                mine = np.frombuffer(raw, np.uint8, tensor.nbytes, tensor.offset)
                assert np.array_equal(found.reshape(-1).view(np.uint8), mine)


def dcp(data: bytes) -> None:
    """Read the metadata of a distributed checkpoint, locate its tensors, read its objects."""
    path = _file(METADATA, data)
    records = path.with_name("__0_0.distcp")
    if not records.exists():
        records.write_bytes(distributed()[1])
    size = records.stat().st_size

    def folder() -> None:
        found = open_dcp(path.parent)
        for entry in found.objects.values():
            assert ".." not in entry.file.split("/") and not os.path.isabs(entry.file)
        for name, tensor in found.tensors.items():
            for chunk in tensor.chunks:
                assert len(chunk.sizes) == len(chunk.offsets) == len(tensor.shape)
                assert chunk.entry is None or ".." not in chunk.entry.file.split("/")
            _outcome(partial(_located, found, name, size))
        for name in found.objects:
            _outcome(partial(found.read_object, name))

    _outcome(folder)


def _located(folder: DcpFolder, name: str, size: int) -> None:
    _inside([(t.offset, t.nbytes) for t in folder.locate([name])[name] if t is not None], size)


def hdf5(data: bytes) -> None:
    """Walk the structure of an HDF5 file, and open it as a model of TensorFlow."""
    path = _file("tf_model.h5", data)

    def datasets() -> None:
        for _, tensor in open_hdf5(path).walk():
            assert len(tensor.shape) <= 32
            _inside([(tensor.offset, tensor.nbytes)], len(data))

    if _outcome(datasets) is None:
        _outcome(lambda: open_checkpoint(path))


def tf1(data: bytes) -> None:
    """Read an index of TensorFlow's saver; and one whose block has these bytes and a true checksum."""
    held = _file("saved.data-00000-of-00001", bytes(64))
    for raw in (data, table([sealed(data)])):
        path = _file("saved.index", raw)

        def variables(path: Path = path) -> None:
            for tensor in open_bundle(path)[0].values():
                assert Path(tensor.path) == held
                _inside([(tensor.offset, tensor.nbytes)], 64)

        if _outcome(variables) is None:
            _outcome(partial(open_checkpoint, path))


def yaml_file(data: bytes) -> None:
    """Read a run's YAML, and the facts it states of a model."""
    path = _file("config.yaml", data)

    def facts() -> None:
        run = read_run(path)
        if run is not None:
            _weighed(run_facts(run))

    _outcome(lambda: read_yaml(path))
    _outcome(facts)


def _weighed(facts: Mapping[str, Fact]) -> None:
    """Make of facts what a conversion does: the families that fit, their config."""
    for family in fitting(facts, SLOTS):
        _outcome(partial(config_from, observed(facts, SLOTS), family))


def config_file(data: bytes) -> None:
    """Read a config.json, and all that is made of it: sizes, expected tensors, facts, arguments."""
    path = _file("config.json", data)
    found: dict[str, Any] = {}

    def read() -> None:
        config = read_config(path.parent)
        found.update(typed_config(config, path))

    if _outcome(read) is not None:
        return
    family = find_family(found.get("model_type")) or find_family("llama")
    assert family is not None
    _outcome(partial(family.compare, found, SHAPES))

    def written(form: Form) -> None:
        arguments_from(facts_of(found, family), form)

    _outcome(partial(written, Form("megatron")))
    _outcome(partial(written, Form("mindspeed", pp=2)))


def arguments(data: bytes) -> None:
    """Read the same as training arguments."""
    path = _file("args.json", data)

    def facts() -> None:
        found = read_json(path)
        if isinstance(found, dict):
            _weighed(read_facts(found))

    _outcome(facts)


SLOTS = ("embed", "final_norm", "head", *(f"layers.*.{s}" for s in (
    "attn_norm", "attn.q", "attn.k", "attn.v", "attn.o", "mlp_norm", "mlp.gate", "mlp.up", "mlp.down",
)))  # fmt: skip
SHAPES = {"model.embed_tokens.weight": (96, 32), "model.norm.weight": (32,)}

TARGETS: dict[str, Target] = {
    "unpickler": unpickle,
    "torch": torch_file,
    "protobuf": protobuf,
    "safetensors": safetensors,
    "dcp": dcp,
    "hdf5": hdf5,
    "tf1": tf1,
    "yaml": yaml_file,
    "config": config_file,
    "arguments": arguments,
}
