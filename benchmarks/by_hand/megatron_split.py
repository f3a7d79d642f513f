#!/usr/bin/env python
"""Cut a Hugging Face Llama into Megatron's ranks the way people write it: load all, slice, save each rank.

python benchmarks/by_hand/megatron_split.py MODEL OUT --tp 4 --pp 2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from plain import load

State = dict[str, torch.Tensor]


def split(state: State, config: dict[str, Any], tp: int, pp: int, p: int) -> list[State]:
    """Return the weights of a pipeline stage, one state dict a tensor rank."""
    ranks: list[State] = [{} for _ in range(tp)]

    def put(name: str, parts: Any) -> None:
        for rank, part in zip(ranks, parts, strict=True):
            rank[name] = part.clone()  # a slice would save all that it is a slice of

    layers = config["num_hidden_layers"] // pp
    kv, hidden = config["num_key_value_heads"], config["hidden_size"]
    if p == 0:
        put("embedding.word_embeddings.weight", _padded(state["model.embed_tokens.weight"], tp).chunk(tp))
    for i in range(layers):
        ours, theirs = f"decoder.layers.{i}.", f"model.layers.{i + p * layers}."
        q, k, v = (state[f"{theirs}self_attn.{n}_proj.weight"].view(kv, -1, hidden) for n in "qkv")
        grouped = torch.cat([q, k, v], 1).view(-1, hidden)
        gate, up = (state[f"{theirs}mlp.{n}_proj.weight"].chunk(tp) for n in ("gate", "up"))
        put(ours + "self_attention.linear_qkv.weight", grouped.chunk(tp))
        put(
            ours + "self_attention.linear_qkv.layer_norm_weight",
            [state[theirs + "input_layernorm.weight"]] * tp,
        )
        put(
            ours + "self_attention.linear_proj.weight", state[theirs + "self_attn.o_proj.weight"].chunk(tp, 1)
        )
        put(ours + "mlp.linear_fc1.weight", [torch.cat(pair) for pair in zip(gate, up, strict=True)])
        put(
            ours + "mlp.linear_fc1.layer_norm_weight",
            [state[theirs + "post_attention_layernorm.weight"]] * tp,
        )
        put(ours + "mlp.linear_fc2.weight", state[theirs + "mlp.down_proj.weight"].chunk(tp, 1))
    if p == pp - 1:
        put("decoder.final_layernorm.weight", [state["model.norm.weight"]] * tp)
        put("output_layer.weight", _padded(state["lm_head.weight"], tp).chunk(tp))
    return ranks


def _padded(tensor: torch.Tensor, tp: int) -> torch.Tensor:
    rows = -len(tensor) % (128 * tp)
    return torch.cat([tensor, tensor[-1:].expand(rows, -1)])  # as Megatron's own converter pads


def main() -> None:
    """Load, split, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    args = parser.parse_args()
    state = load(args.model)
    config = json.loads((args.model / "config.json").read_text())
    for p in range(args.pp):
        for t, model in enumerate(split(state, config, args.tp, args.pp, p)):
            folder = args.out / "iter_0000001" / (f"mp_rank_{t:02d}" + (f"_{p:03d}" if args.pp > 1 else ""))
            folder.mkdir(parents=True, exist_ok=True)
            torch.save({"model": model, "iteration": 1}, folder / "model_optim_rng.pt")
    (args.out / "latest_checkpointed_iteration.txt").write_text("1")


if __name__ == "__main__":
    main()
