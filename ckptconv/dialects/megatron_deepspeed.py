"""BLOOM's names in Megatron-DeepSpeed's layer files: BigScience 3ae0b2c, ``megatron/model/gpt_model.py``.

The embedding is layer 1 of the pipeline, block 0 layer 3, the last norm a layer of its own (transformers
5.23, ``models/bloom/convert_bloom_original_checkpoint_to_pytorch.py``).
"""

from __future__ import annotations

import re
from typing import Final

from ckptconv.dialects.base import Dialect, module, norm, plain, prefixed
from ckptconv.slots import grouped

__all__ = ["MEGATRON_DEEPSPEED"]

_LAYER: Final = re.compile(r"(?:module\.)?(\d+)\.(?:tied_modules\.embed\.)?(.+)")
_BEFORE: Final = 3
_QKV = grouped("heads", *(f"layers.*.attn.{part}" for part in "qkv"))


def _counted(name: str) -> str:
    """Return a name with its block counted from 0."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name.removeprefix("tied_modules.embed.")
    number, rest = int(match[1]), match[2]
    if rest in ("weight", "bias"):
        return f"final_layernorm.{rest}"
    return rest if rest.startswith("word_embeddings.") else f"layers.{number - _BEFORE}.{rest}"


MEGATRON_DEEPSPEED = Dialect(
    name="megatron-deepspeed",
    library="Megatron-DeepSpeed",
    lines=(
        plain("embed", "word_embeddings.weight"),
        *norm("embed_norm", "word_embeddings.norm."),
        *prefixed(
            (
                *norm("layers.*.attn_norm", "input_layernorm."),
                *module(_QKV, "self_attention.query_key_value"),
                *module("layers.*.attn.o", "self_attention.dense"),
                *norm("layers.*.mlp_norm", "post_attention_layernorm."),
                *module("layers.*.mlp.up", "mlp.dense_h_to_4h"),
                *module("layers.*.mlp.down", "mlp.dense_4h_to_h"),
            ),
            "layers.*.",
        ),
        *norm("final_norm", "final_layernorm."),
    ),
    ranks=False,
    bare=_counted,
)
