#!/usr/bin/env python
"""Turn MindFormers' Llama into Hugging Face's and back with MindSpore: load all, rename, save all.

python benchmarks/by_hand/mindformers.py FILE.ckpt OUT          from MindFormers
python benchmarks/by_hand/mindformers.py MODEL OUT              to MindFormers
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

import mindspore

_NAMES = (
    ("model.tok_embeddings.embedding_weight", "model.embed_tokens.weight"),
    ("model.norm_out.weight", "model.norm.weight"),
    ("attention.wq", "self_attn.q_proj"),
    ("attention.wk", "self_attn.k_proj"),
    ("attention.wv", "self_attn.v_proj"),
    ("attention.wo", "self_attn.o_proj"),
    ("feed_forward.w1", "mlp.gate_proj"),
    ("feed_forward.w2", "mlp.down_proj"),
    ("feed_forward.w3", "mlp.up_proj"),
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
)
_BACK = tuple((hf, mf) for mf, hf in _NAMES)


def renamed(name: str, names: tuple[tuple[str, str], ...]) -> str:
    """Replace the part of a name that is called otherwise."""
    for old, new in names:
        if re.search(rf"(^|\.){re.escape(old)}(\.|$)", name):
            return name.replace(old, new)
    return name


def main(source: Path, out: Path) -> None:
    """Load, rename, save."""
    out.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".ckpt":
        loaded = mindspore.load_checkpoint(str(source))
        state = {renamed(name, _NAMES): p.asnumpy() for name, p in loaded.items()}
        save_file(state, out / "model.safetensors", metadata={"format": "pt"})
        return
    weights: list[dict[str, object]] = []
    for file in sorted(source.glob("*.safetensors")):
        for name, array in load_file(file).items():
            weights.append({"name": renamed(name, _BACK), "data": mindspore.Tensor(array)})
    mindspore.save_checkpoint(weights, str(out / "checkpoint.ckpt"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
