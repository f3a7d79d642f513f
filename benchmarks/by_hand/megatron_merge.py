#!/usr/bin/env python
"""Merge Megatron's ranks into a Llama or Qwen3-MoE the way people write it: load all, join, save all.

python benchmarks/by_hand/megatron_merge.py RUN OUT --config MODEL --tp 4 --pp 2 --ep 1

It trusts the file (``weights_only=False``), compares no copies and knows TransformerEngine's names alone.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
_ENDS = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "output_layer.weight": "lm_head.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
}
_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.router.weight": "mlp.gate.weight",
}
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.linear_(fc[12])\.weight(\d+)")


def load(run: Path, tp: int, pp: int, ep: int) -> list[list[list[State]]]:
    """Load every rank's weights: by pipeline stage, by expert rank, by tensor rank."""
    iteration = run / f"iter_{int((run / 'latest_checkpointed_iteration.txt').read_text()):07d}"

    def rank(t: int, p: int, e: int) -> State:
        name = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else "") + (f"_{e:03d}" if ep > 1 else "")
        file = iteration / name / "model_optim_rng.pt"
        model = torch.load(file, map_location="cpu", weights_only=False)["model"]
        return {k: v for k, v in model.items() if isinstance(v, torch.Tensor)}

    return [[[rank(t, p, e) for t in range(tp)] for e in range(ep)] for p in range(pp)]


def merge(stages: list[list[list[State]]], config: dict[str, Any]) -> State:
    """Join the ranks under Hugging Face's names."""
    out: State = {}
    offset = 0
    for stage in stages:
        layers = 0
        for e, ranks in enumerate(stage):
            for name in ranks[0]:
                parts = [r[name] for r in ranks]
                found = _LAYER.fullmatch(name)
                if found is None:
                    if e == 0:
                        whole = parts[0] if "norm" in name else torch.cat(parts)[: config["vocab_size"]]
                        out[_ENDS[name]] = whole
                    continue
                layers = max(layers, int(found[1]) + 1)
                prefix = f"model.layers.{int(found[1]) + offset}."
                if expert := _EXPERT.fullmatch(found[2]):
                    number = int(expert[2]) + e * config["num_experts"] // len(stage)
                    out |= _mlp(f"{prefix}mlp.experts.{number}.", expert[1], parts)
                elif e == 0:
                    out |= _part(prefix, found[2], parts, config)
        offset += layers
    return {name: tensor.contiguous() for name, tensor in out.items()}


def _part(prefix: str, name: str, parts: list[torch.Tensor], config: dict[str, Any]) -> State:
    if name in _NORMS:
        return {prefix + _NORMS[name]: parts[0]}
    if name == "self_attention.linear_qkv.weight":
        kv, heads, hidden = (config[k] for k in ("num_key_value_heads", "num_attention_heads", "hidden_size"))
        head = config.get("head_dim", hidden // heads)
        grouped = torch.cat(parts).view(kv, heads // kv + 2, head, hidden)
        split = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
        return {
            f"{prefix}self_attn.{n}_proj.weight": t.reshape(-1, hidden)
            for n, t in zip("qkv", split, strict=True)
        }
    if name == "self_attention.linear_proj.weight":
        return {f"{prefix}self_attn.o_proj.weight": torch.cat(parts, 1)}
    if name in ("mlp.linear_fc1.weight", "mlp.linear_fc2.weight"):
        return _mlp(prefix + "mlp.", name[len("mlp.linear_") :][:3], parts)
    raise KeyError(name)


def _mlp(prefix: str, name: str, parts: list[torch.Tensor]) -> State:
    if name == "fc2":
        return {prefix + "down_proj.weight": torch.cat(parts, 1)}
    halves = [p.chunk(2) for p in parts]
    return {
        prefix + "gate_proj.weight": torch.cat([h[0] for h in halves]),
        prefix + "up_proj.weight": torch.cat([h[1] for h in halves]),
    }


def main() -> None:
    """Load, merge, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    for name in ("--tp", "--pp", "--ep"):
        parser.add_argument(name, type=int, default=1)
    args = parser.parse_args()
    config = json.loads((args.config / "config.json").read_text())
    state = merge(load(args.run, args.tp, args.pp, args.ep), config)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
