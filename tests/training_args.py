"""Load the arguments of real checkpoints, each beside the config.json and the slots of its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "fixtures" / "megatron" / "args"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
MEGATRON = [n for n in NAMES if not n.startswith("v")]
# Written by the weight converters of ModelLink and MindSpeed-LLM, which do not keep everything.
V1 = [n for n in NAMES if n.startswith("v1_")]
V2 = [n for n in NAMES if n.startswith("v2_")]


@dataclass(frozen=True)
class Trained:
    """One checkpoint: its arguments, the true config and the slots its tensors hold."""

    args: dict[str, Any]
    config: dict[str, Any]
    slots: frozenset[str]


def trained(name: str) -> Trained:
    """Load a case; what is an object in the checkpoint is an opaque one here."""
    data = json.loads((FOLDER / f"{name}.json").read_text())
    args = {k: object() if isinstance(v, dict) else v for k, v in data["args"].items()}
    return Trained(args, data["config"], frozenset(data["slots"]))
