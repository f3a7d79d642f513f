#!/usr/bin/env python
"""Turn a model of FP8 codes and scales into bfloat16 the usual way: load all, multiply, save all.

python benchmarks/by_hand/fp8_cast.py MODEL OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from plain import load
from safetensors.torch import save_file

_BLOCK = 128
_SCALE = "_scale_inv"


def main(model: Path, out: Path) -> None:
    """Load, multiply, save."""
    state = load(model)
    values = {}
    for name, tensor in state.items():
        if name.endswith(_SCALE):
            continue
        if tensor.dtype == torch.float8_e4m3fn:
            scale = state[name + _SCALE].repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
            tensor = (tensor.float() * scale[: tensor.shape[0], : tensor.shape[1]]).bfloat16()
        values[name] = tensor
    out.mkdir(parents=True)
    save_file(values, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
