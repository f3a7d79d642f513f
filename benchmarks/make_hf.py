#!/usr/bin/env python
"""Write a Hugging Face model of any size from random bytes: config.json and sharded safetensors.

    python benchmarks/make_hf.py OUT --kind llama|moe|experts|rows --gigabytes 8 [--dtype bfloat16|float32]

The tensors have the names and shapes of the architecture; the values are random bits with an exponent below
that of 2.0, so that all are finite and no cast overflows. Memory stays at one block, whatever the size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 1 << 25
_SHARD = 5_000_000_000
_VOCAB = 32_000
# dtype: its name in safetensors, bytes, the bits of each value that are kept in 64 bits of noise
_DTYPES = {"bfloat16": ("BF16", 2, 0xBFFF_BFFF_BFFF_BFFF), "float32": ("F32", 4, 0xBFFF_FFFF_BFFF_FFFF)}

Shapes = dict[str, tuple[int, ...]]
# The least that is a tokenizer: some tools do not save a model without one.
_TOKENIZER = {
    "version": "1.0", "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "a": 2}, "unk_token": "a"},
}  # fmt: skip


def llama(parameters: float) -> tuple[dict[str, Any], Shapes]:
    """Return the config and the shapes of a Llama of about so many parameters, an even number of layers."""
    hidden, inner, heads, kv = _width(
        parameters, (512, 1408, 8, 4), (2048, 5632, 16, 8), (4096, 14336, 32, 8)
    )
    key = hidden // heads * kv
    layer: Shapes = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    config, shapes = _model(parameters, layer, hidden, even=True)
    config |= {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv, "mlp_bias": False, "rope_theta": 10000.0,
    }  # fmt: skip
    return config, shapes


def moe(parameters: float) -> tuple[dict[str, Any], Shapes]:
    """Return a Qwen3-MoE: nearly all of it is experts."""
    hidden, inner, experts, heads, kv = _width(
        parameters, (256, 192, 16, 4, 2), (1024, 768, 64, 16, 4), (2048, 768, 128, 32, 4)
    )
    head = 128
    layer: Shapes = {
        "self_attn.q_proj.weight": (heads * head, hidden),
        "self_attn.k_proj.weight": (kv * head, hidden),
        "self_attn.v_proj.weight": (kv * head, hidden),
        "self_attn.o_proj.weight": (hidden, heads * head),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "mlp.gate.weight": (experts, hidden),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for e in range(experts):
        layer |= {
            f"mlp.experts.{e}.gate_proj.weight": (inner, hidden),
            f"mlp.experts.{e}.up_proj.weight": (inner, hidden),
            f"mlp.experts.{e}.down_proj.weight": (hidden, inner),
        }
    config, shapes = _model(parameters, layer, hidden, even=False)
    config |= {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "intermediate_size": inner,
        "moe_intermediate_size": inner, "num_experts": experts, "num_experts_per_tok": 8, "head_dim": head,
        "num_attention_heads": heads, "num_key_value_heads": kv, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "norm_topk_prob": True, "rope_theta": 1000000.0,
    }  # fmt: skip
    return config, shapes


def experts(parameters: float) -> tuple[dict[str, Any], Shapes]:
    """Return a Qwen3-MoE of 48 layers with 128 experts each: 18,867 tensors, whatever their size."""
    config, shapes = moe(1e9)
    inner, layers, vocabulary, head = 64, 48, 4096, 32
    hidden = max(64, round(parameters / (layers * 128 * 3 * inner) / 64) * 64)
    layer: Shapes = {
        "self_attn.q_proj.weight": (4 * head, hidden),
        "self_attn.k_proj.weight": (4 * head, hidden),
        "self_attn.v_proj.weight": (4 * head, hidden),
        "self_attn.o_proj.weight": (hidden, 4 * head),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "mlp.gate.weight": (128, hidden),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for e in range(128):
        layer |= {
            f"mlp.experts.{e}.gate_proj.weight": (inner, hidden),
            f"mlp.experts.{e}.up_proj.weight": (inner, hidden),
            f"mlp.experts.{e}.down_proj.weight": (hidden, inner),
        }
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    config |= {
        "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "head_dim": head,
        "intermediate_size": inner, "moe_intermediate_size": inner, "num_experts": 128,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    return config, shapes


def rows(parameters: float) -> tuple[dict[str, Any], Shapes]:
    """Return a Llama with many heads and a narrow MLP: nearly half of a layer is cut along its rows."""
    hidden, heads, inner = _width(parameters, (256, 16, 512), (1024, 64, 1024), (2048, 128, 2048))
    head, kv = 128, 8
    layer: Shapes = {
        "self_attn.q_proj.weight": (heads * head, hidden),
        "self_attn.k_proj.weight": (kv * head, hidden),
        "self_attn.v_proj.weight": (kv * head, hidden),
        "self_attn.o_proj.weight": (hidden, heads * head),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    config, shapes = _model(parameters, layer, hidden, even=False)
    config |= {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head, "mlp_bias": False,
        "rope_theta": 10000.0,
    }  # fmt: skip
    return config, shapes


KINDS = {"llama": llama, "moe": moe, "experts": experts, "rows": rows}


def _width(parameters: float, *widths: tuple[int, ...]) -> tuple[int, ...]:
    return widths[(parameters >= 3e8) + (parameters >= 1.5e9)]


def _model(parameters: float, layer: Shapes, hidden: int, *, even: bool) -> tuple[dict[str, Any], Shapes]:
    ends = 2 * _VOCAB * hidden
    step = 2 if even else 1
    layers = max(step, round((parameters - ends) / sum(map(prod, layer.values())) / step) * step)
    shapes: Shapes = {"model.embed_tokens.weight": (_VOCAB, hidden)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (_VOCAB, hidden)}
    config = {
        "vocab_size": _VOCAB, "hidden_size": hidden, "num_hidden_layers": layers, "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return config, shapes


def noise(bytes_: int, mask: int, generator: np.random.SFC64) -> Iterator[memoryview]:
    """Yield random bytes in blocks, ``mask`` applied to each 8 of them."""
    while bytes_ > 0:
        size = min(bytes_, _BLOCK)
        words = generator.random_raw(-(-size // 8)) & np.uint64(mask)
        yield memoryview(words).cast("B")[:size]
        bytes_ -= size


def _shards(shapes: Shapes, itemsize: int) -> list[Shapes]:
    shards: list[Shapes] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = prod(shape) * itemsize
        if shards[-1] and filled + size > _SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def write(out: Path, config: dict[str, Any], shapes: Shapes, dtype: str) -> None:
    """Write the model; config.json comes last."""
    code, itemsize, mask = _DTYPES[dtype]
    generator = np.random.SFC64(0)
    shards = _shards(shapes, itemsize)
    single = len(shards) == 1
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = "model.safetensors" if single else f"model-{i:05}-of-{len(shards):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, shape in shard.items():
            begin, end = end, end + prod(shape) * itemsize
            header[tensor] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
            where[tensor] = name
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(out / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for block in noise(end, mask, generator):
                file.write(block)
    if not single:
        index = {"metadata": {"total_size": sum(map(prod, shapes.values())) * itemsize}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    describe(out, {**config, "dtype": dtype})


def describe(out: Path, config: dict[str, Any]) -> None:
    """Write what stands beside the weights."""
    (out / "tokenizer.json").write_text(json.dumps(_TOKENIZER))
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (out / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    """Write OUT."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="llama")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    parameters = args.gigabytes * 1e9 / _DTYPES[args.dtype][1]
    write(args.out, *KINDS[args.kind](parameters), args.dtype)


if __name__ == "__main__":
    main()
