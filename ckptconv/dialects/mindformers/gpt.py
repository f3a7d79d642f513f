"""Name the tensors of GPT-2 and BLOOM (models/gpt2, models/bloom): their own projections lie input first."""

from __future__ import annotations

from ckptconv.dialects.base import Dialect, Line, norm, plain, prefixed, whole
from ckptconv.dialects.mindformers.parts import DOWN, UP, K, Q, V
from ckptconv.slots import (
    transposed,
)

__all__ = ["BLOOM", "GPT2"]

_OLD_NORM = ("gamma", "beta")


def _block(layer: str) -> tuple[Line, ...]:
    return prefixed(
        (
            *norm("layers.*.attn_norm", "layernorm1.", names=_OLD_NORM),
            *norm("layers.*.mlp_norm", "layernorm2.", names=_OLD_NORM),
            *whole(Q, "attention.dense1", bias=True),
            *whole(K, "attention.dense2", bias=True),
            *whole(V, "attention.dense3", bias=True),
            *whole(transposed("layers.*.attn.o"), "attention.projection", bias=True),
            *whole(transposed(UP), "output.mapping", bias=True),
            *whole(transposed(DOWN), "output.projection", bias=True),
        ),
        layer,
    )


GPT2 = Dialect(
    name="mindformers-gpt2",
    lines=(
        plain("embed", "backbone.embedding.word_embedding.embedding_table"),
        plain("positions", "backbone.embedding.position_embedding.embedding_table"),
        *_block("backbone.blocks.*."),
        *norm("final_norm", "backbone.layernorm.", names=_OLD_NORM),
    ),
    ignored=(r"backbone\.blocks\.\d+\.attention\.(masked_)?beta",),
    ranks=False,
)
BLOOM = Dialect(
    name="mindformers-bloom",
    lines=(
        plain("embed", "transformer.embedding.word_embedding.embedding_table"),
        *norm("embed_norm", "transformer.embedding.norm.", names=_OLD_NORM),
        *_block("transformer.blocks.*."),
        *norm("final_norm", "transformer.ln_f.", names=_OLD_NORM),
        plain("head", "head.weight"),
    ),
    ignored=(r".*\.inv_freq",),
    ranks=False,
)
