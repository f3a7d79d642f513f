#!/usr/bin/env python
"""Load a model with transformers and save it again: in another dtype, in other shards, without its FP8.

python benchmarks/by_hand/resave.py MODEL OUT [--dtype bfloat16] [--shard 500MB] [--dequantize]
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config


def main() -> None:
    """Load, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shard", default="5GB")
    parser.add_argument("--dequantize", action="store_true")
    args = parser.parse_args()
    quantized = {"quantization_config": FineGrainedFP8Config(dequantize=True)} if args.dequantize else {}
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), **quantized)
    # Else what was loaded by converting is converted back: to FP8 again.
    model.save_pretrained(args.out, max_shard_size=args.shard, save_original_format=not args.dequantize)


if __name__ == "__main__":
    main()
