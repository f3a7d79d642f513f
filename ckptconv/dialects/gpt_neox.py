"""GPT-NeoX's names: EleutherAI/gpt-neox ea7aefd8, ``tools/ckpts/convert_neox_to_hf.py``.

A pipeline's layers are counted with the embedding as 0 and a step without weights as 1, so that block 0 is
layer 2; in one stage all of them lie under ``sequential``.
"""

from __future__ import annotations

import re
from typing import Final

from ckptconv.dialects.base import Dialect, module, norm, plain, prefixed
from ckptconv.slots import grouped

__all__ = ["GPT_NEOX"]

_LAYER: Final = re.compile(r"(?:module\.)?(?:sequential\.)?(\d+)\.(.+)")
_BEFORE: Final = 2
_QKV = ("layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")
_END: Final = ("norm.", "final_linear.", "word_embeddings.")


def _counted(name: str) -> str:
    """Return a name with its block counted from 0."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    number, rest = int(match[1]), match[2]
    return rest if rest.startswith(_END) or number < _BEFORE else f"sequential.{number - _BEFORE}.{rest}"


GPT_NEOX = Dialect(
    name="gpt-neox",
    library="GPT-NeoX",
    lines=(
        plain("embed", "word_embeddings.weight"),
        *prefixed(
            (
                *norm("layers.*.attn_norm", "input_layernorm."),
                *module(grouped("kv_heads", *_QKV), "attention.query_key_value"),
                *module("layers.*.attn.o", "attention.dense"),
                *norm("layers.*.mlp_norm", "post_attention_layernorm."),
                *module("layers.*.mlp.up", "mlp.dense_h_to_4h"),
                *module("layers.*.mlp.down", "mlp.dense_4h_to_h"),
                *module("layers.*.mlp.up", "mlp.linear1"),
                *module("layers.*.mlp.down", "mlp.linear2"),
            ),
            "sequential.*.",
        ),
        *norm("final_norm", "norm."),
        plain("head", "final_linear.weight"),
    ),
    ignored=(r"sequential\.\d+\.attention\.(rotary_emb\.inv_freq|bias|masked_bias)",),
    ranks=False,
    bare=_counted,
)
