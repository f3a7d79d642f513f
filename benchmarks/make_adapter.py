#!/usr/bin/env python
"""Write a LoRA adapter of a model as PEFT saves it: rank 16 on every projection, of random numbers.

python benchmarks/make_adapter.py MODEL OUT
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_RANK = 16


def main(model: Path, out: Path) -> None:
    """Write OUT."""
    out.mkdir(parents=True)
    torch.manual_seed(0)
    factors, modules = {}, set()
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if found := re.fullmatch(r"(.+\.(\w+_proj))\.weight", name):
                    rows, columns = opened.get_slice(name).get_shape()
                    path = f"base_model.model.{found[1]}"
                    factors[f"{path}.lora_A.weight"] = torch.randn(_RANK, columns).bfloat16() / 64
                    factors[f"{path}.lora_B.weight"] = torch.randn(rows, _RANK).bfloat16() / 64
                    modules.add(found[2])
    save_file(factors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    about = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": _RANK, "lora_alpha": 2 * _RANK,
        "target_modules": sorted(modules), "base_model_name_or_path": str(model), "bias": "none",
        "lora_dropout": 0.0, "fan_in_fan_out": False, "use_rslora": False, "modules_to_save": None,
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(about, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
