#!/usr/bin/env python
"""Turn a state dict of torch.save into safetensors the usual way: load it, save it.

python benchmarks/torch_save_file.py FILE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def main(file: str, out: Path) -> None:
    """Load all of ``file``, then write ``out/model.safetensors``."""
    out.mkdir(parents=True, exist_ok=True)
    state = torch.load(file, map_location="cpu", weights_only=True)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
