#!/usr/bin/env python
"""Turn a model of FP8 codes and scales into bfloat16 as DeepSeek's fp8_cast_bf16.py does, on a CPU.

python benchmarks/by_hand/fp8_cast.py MODEL OUT

File by file, as there; its kernel, which multiplies blocks of 128 x 128 by their scales, is torch here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

_BLOCK = 128
_SCALE = "_scale_inv"


def main(model: Path, out: Path) -> None:
    """Load a file, multiply, save it."""
    files = sorted(model.glob("*.safetensors"))
    scales: dict[str, torch.Tensor] = {}
    for file in files:  # a weight's scale may lie in another file
        with safe_open(file, "pt") as opened:
            scales |= {name: opened.get_tensor(name) for name in opened.keys() if name.endswith(_SCALE)}  # noqa: SIM118
    out.mkdir(parents=True)
    for file in files:
        values = {}
        for name, tensor in load_file(file).items():
            if name in scales:
                continue
            if tensor.dtype == torch.float8_e4m3fn:
                scale = scales[name + _SCALE].repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
                tensor = (tensor.float() * scale[: tensor.shape[0], : tensor.shape[1]]).bfloat16()
            values[name] = tensor
        save_file(values, out / file.name, metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
