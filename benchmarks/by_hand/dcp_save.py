#!/usr/bin/env python
"""Save a model as torch.distributed.checkpoint the usual way: load all, save all.

python benchmarks/by_hand/dcp_save.py MODEL OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed.checkpoint as dcp
from plain import load


def main(model: Path, out: Path) -> None:
    """Load, save."""
    dcp.save(load(model), checkpoint_id=out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
