#!/usr/bin/env python
"""Train a small model of litgpt's for a step and save it as litgpt's own commands do, in one process on CPU.

    PYTHONPATH=LIBRARY python litgpt_save.py NAME OUT

NAME is that of a model in litgpt's list, whose sizes are made small; OUT gets the run and what the model
answers.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import lightning
import torch
from litgpt import GPT, Config
from litgpt.utils import save_config

SIZES = {"n_layer": 3, "n_embd": 64, "block_size": 128, "vocab_size": 90, "padded_vocab_size": 96}


def small(name: str) -> Config:
    """Return the configuration of a model of litgpt's, of small sizes."""
    config = Config.from_name(name)
    heads = 4
    more = {"n_head": heads, "head_size": 16, "intermediate_size": 112, "n_query_groups": heads}
    if config.n_query_groups != config.n_head:
        more["n_query_groups"] = 1 if config.n_query_groups == 1 else 2
    if config.n_expert:
        more |= {"n_expert": 4, "n_expert_per_token": 2}
        more |= {"moe_intermediate_size": 48} if getattr(config, "moe_intermediate_size", None) else {}
    if getattr(config, "sliding_window_size", None):
        more["sliding_window_size"] = 8
    if getattr(config, "attention_scores_scalar", None):
        more["attention_scores_scalar"] = 24
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return Config(**{**given, **SIZES, **more})


def main(name: str, out: Path) -> None:
    """Make, train and save."""
    torch.manual_seed(0)
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    config = small(name)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = fabric.setup(model, optimizer)
    tokens = torch.randint(0, config.vocab_size, (2, 24))
    torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()
    state = {"model": model, "optimizer": optimizer, "iter_num": 1, "step_count": 1}
    # litgpt 0.5, pretrain.py and finetune/full.py: what is saved on the way, and in the end
    for folder, saved in (("step-00000001", state), ("final", {"model": state["model"]})):
        (out / "run" / folder).mkdir(parents=True)
        fabric.save(out / "run" / folder / "lit_model.pth", saved)
        save_config(model.config, out / "run" / folder)
    with torch.no_grad():
        torch.save({"tokens": tokens, "logits": model(tokens)}, out / "answer.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
