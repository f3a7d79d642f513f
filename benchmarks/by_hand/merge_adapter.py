#!/usr/bin/env python
"""Merge a LoRA adapter into its model with PEFT.

python benchmarks/by_hand/merge_adapter.py MODEL ADAPTER OUT
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(model: str, adapter: str, out: str) -> None:
    """Load, merge, save."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
