#!/usr/bin/env python
"""Turn safetensors or torch.save files into the other, or round them, the usual way: load all, save all.

python benchmarks/by_hand/plain.py SOURCE OUT [--to safetensors|bin] [--dtype bfloat16|float32]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def load(source: Path) -> dict[str, Any]:
    """Load every file of a model."""
    state: dict[str, Any] = {}
    files = [source] if source.is_file() else sorted([*source.glob("*.safetensors"), *source.glob("*.bin")])
    for file in files:
        if file.suffix == ".safetensors":
            state |= load_file(file)
        else:
            state |= torch.load(file, map_location="cpu", weights_only=True)
    return state


def main() -> None:
    """Load, round, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--to", choices=("safetensors", "bin"), default="safetensors")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    args = parser.parse_args()
    state = load(args.source)
    if args.dtype:
        state = {name: tensor.to(getattr(torch, args.dtype)) for name, tensor in state.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    if args.to == "bin":
        torch.save(state, args.out / "pytorch_model.bin")
    else:
        save_file(state, args.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
