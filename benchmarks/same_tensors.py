#!/usr/bin/env python
"""Check that two models hold the same tensors, bit for bit; exit with 1 if not.

    python benchmarks/same_tensors.py A B

A and B are files or folders of safetensors, of torch.save (``.pt``, ``.bin``; needs torch, trusts the file),
of torch.distributed.checkpoint (``.metadata``; needs torch) or of MindSpore (``.ckpt``; needs mindspore).
Tensors in Megatron's folders of ranks are told apart by folder.
Shapes and bytes must agree; the sharding may differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

Tensor = tuple[tuple[int, ...], np.ndarray]  # shape, bytes
_BLOCK = 1 << 26


def main(a: str, b: str) -> None:
    """Compare names, then shapes and bytes, one tensor at a time."""
    left, right = tensors(Path(a)), tensors(Path(b))
    if different := left.keys() ^ right.keys():
        sys.exit(f"only in one of them: {sorted(different)[0]} ({len(different)} such)")
    if not left:
        sys.exit(f"no tensors in {a}")
    for name, (shape, data) in left.items():
        other, same = right[name]
        if shape != other or data.nbytes != same.nbytes:
            sys.exit(f"{name}: {shape} of {data.nbytes} bytes, {other} of {same.nbytes} bytes")
        for at in range(0, data.nbytes, _BLOCK):
            if not np.array_equal(data[at : at + _BLOCK], same[at : at + _BLOCK]):
                sys.exit(f"{name} differs")
    print(f"{len(left)} tensors, {sum(d.nbytes for _, d in left.values())} bytes: the same")


def tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor's shape and bytes by name, mapped where the format allows."""
    if found := {name: tensor for file in path.rglob(".metadata") for name, tensor in _dcp(file.parent)}:
        return found
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in _READ)
    for file in files:
        prefix = f"{file.parent.name}:" if file.parent.name.startswith("mp_rank_") else ""
        found |= {prefix + name: tensor for name, tensor in _READ[file.suffix](file)}
    return found


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    whole = np.memmap(file, np.uint8, "r")
    length = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    for name, about in json.loads(whole[8:length].tobytes()).items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            yield name, (tuple(about["shape"]), whole[length + begin : length + end])


def _torch(file: Path) -> Iterator[tuple[str, Tensor]]:
    import torch

    state = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    for name, tensor in state.get("model", state).items():
        if isinstance(tensor, torch.Tensor):
            data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
            yield name, (tuple(tensor.shape), data)


def _dcp(folder: Path) -> Iterator[tuple[str, Tensor]]:
    import torch
    import torch.distributed.checkpoint as dcp

    about = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    for name, entry in about.items():
        if isinstance(entry, dcp.TensorStorageMetadata):
            state = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
            dcp.load(state, checkpoint_id=folder, no_dist=True)
            yield name, (tuple(entry.size), state[name].view(-1).view(torch.uint8).numpy())


def _mindspore(file: Path) -> Iterator[tuple[str, Tensor]]:
    import mindspore

    for name, parameter in mindspore.load_checkpoint(str(file)).items():
        array = parameter.asnumpy()
        assert array.nbytes == prod(array.shape) * array.itemsize
        yield name, (tuple(array.shape), np.ascontiguousarray(array).reshape(-1).view(np.uint8))


_READ = {".safetensors": _safetensors, ".pt": _torch, ".pth": _torch, ".bin": _torch, ".ckpt": _mindspore}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
