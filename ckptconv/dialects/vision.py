"""What Megatron-Bridge and MindSpeed-MM call vision models that are transformers of their own.

Names: Megatron-Bridge 0.6.2, ``models/qwen_vl/qwen3_vl_bridge.py``; its layers lie behind one another.
MindSpeed-MM 57069cd5, ``checkpoint/vlm_model/converters/qwen2_5vl.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ckptconv.dialects.base import Line, column, norm, plain, row, whole
from ckptconv.slots import Pack, Part, Table, concat, grouped

__all__ = [
    "IMAGE_ENCODER",
    "IMAGE_ENCODER_PLAIN",
    "IMAGE_ENCODER_QWEN2",
    "IMAGE_ENCODER_QWEN2_PLAIN",
    "VISION",
]

_MOST: Final = 32
"""Mergers of deeper layers, at most."""

_QKV = grouped("kv_heads", *(f"layers.*.attn.{part}" for part in "qkv"))
_LAYER = "decoder.layers.*."


def _merger(slot: str, module: str) -> tuple[Line, ...]:
    return (
        *norm(f"{slot}.norm", f"{module}.patch_norm."),
        *column(f"{slot}.up", f"{module}.linear_fc1"),
        *row(f"{slot}.down", f"{module}.linear_fc2"),
    )


VISION = Part(
    "vision_model",
    "vision_model.",
    Table(
        (
            *whole("patch", "patch_embed.proj", bias=True),
            plain("pos", "pos_embed.weight"),
            *norm("layers.*.attn_norm", f"{_LAYER}self_attention.linear_qkv.layer_norm_"),
            *norm("layers.*.attn_norm", f"{_LAYER}input_layernorm."),
            *column(_QKV, f"{_LAYER}self_attention.linear_qkv"),
            *row("layers.*.attn.o", f"{_LAYER}self_attention.linear_proj"),
            *norm("layers.*.mlp_norm", f"{_LAYER}mlp.linear_fc1.layer_norm_"),
            *norm("layers.*.mlp_norm", f"{_LAYER}pre_mlp_layernorm."),
            *column("layers.*.mlp.up", f"{_LAYER}mlp.linear_fc1"),
            *row("layers.*.mlp.down", f"{_LAYER}mlp.linear_fc2"),
            *(
                line
                for n in range(_MOST)
                for line in _merger(f"deepstack.{n}", f"decoder.deepstack_merger_list.{n}")
            ),
            *_merger("merger", "merger"),
        )
    ),
)

_BLOCK = "encoder.blocks.layers.*."
_GATE_UP = concat("layers.*.mlp.gate", "layers.*.mlp.up")


def _encoder(up: Iterable[Line], norms: Callable[[str, str], tuple[Line, ...]], qkv: Pack = _QKV) -> Part:
    """Return an image encoder; it is spread over pipeline stages apart from the language model."""
    return Part(
        "vision_model",
        "image_encoder.",
        Table(
            (
                *whole("patch", "encoder.patch_embed.proj"),
                *norms("layers.*.attn_norm", f"{_BLOCK}input_layernorm."),
                *column(qkv, f"{_BLOCK}self_attention.linear_qkv"),
                *row("layers.*.attn.o", f"{_BLOCK}self_attention.linear_proj"),
                *norms("layers.*.mlp_norm", f"{_BLOCK}pre_mlp_layernorm."),
                *up,
                *row("layers.*.mlp.down", f"{_BLOCK}mlp.linear_fc2"),
                *norms("merger.norm", "projector.layernorm."),
                *column("merger.up", "projector.encoder.linear_fc1"),
                *row("merger.down", "projector.encoder.linear_fc2"),
            )
        ),
    )


def _plain_norm(slot: str, stem: str) -> tuple[Line, ...]:
    return (Line(f"{stem}weight", slot),)


# Qwen2.5-VL's: a gate in the MLP, and no biases in norms.
IMAGE_ENCODER = _encoder(column(_GATE_UP, f"{_BLOCK}mlp.linear_fc1", parts=2), _plain_norm)
# Qwen2-VL's: no gate, and layer norms (``checkpoint/vlm_model/converters/qwen2vl.py``).
_UP = column("layers.*.mlp.up", f"{_BLOCK}mlp.linear_fc1")
IMAGE_ENCODER_QWEN2 = _encoder(_UP, norm)
# With ``enable_canonical_hf_struct`` query, key and value stay as they are published, and so do gate and up.
_AS_PUBLISHED = concat(*(f"layers.*.attn.{part}" for part in "qkv"))
_APART = (
    *column("layers.*.mlp.gate", f"{_BLOCK}mlp.gate_proj"),
    *column("layers.*.mlp.up", f"{_BLOCK}mlp.up_proj"),
)
IMAGE_ENCODER_PLAIN = _encoder(_APART, _plain_norm, _AS_PUBLISHED)
IMAGE_ENCODER_QWEN2_PLAIN = _encoder(_UP, norm, _AS_PUBLISHED)
