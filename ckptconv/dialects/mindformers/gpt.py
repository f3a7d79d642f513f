"""Name the tensors of GPT-2 and BLOOM (models/gpt2, models/bloom): their own projections lie input first."""

from __future__ import annotations

from ckptconv.dialects.mindformers.style import (
    DOWN,
    UP,
    K,
    Q,
    Style,
    V,
    lines,
    norm,
    under,
)
from ckptconv.slots import (
    Entry,
    one,
    transposed,
)

__all__ = ["BLOOM", "GPT2"]

_OLD_NORM = ("gamma", "beta")


def _block(layer: str) -> tuple[Entry, ...]:
    return under(
        layer,
        (
            *norm("layers.*.attn_norm", "layernorm1", names=_OLD_NORM),
            *norm("layers.*.mlp_norm", "layernorm2", names=_OLD_NORM),
            *lines(Q, "attention.dense1"),
            *lines(K, "attention.dense2"),
            *lines(V, "attention.dense3"),
            *lines(transposed("layers.*.attn.o"), "attention.projection"),
            *lines(transposed(UP), "output.mapping"),
            *lines(transposed(DOWN), "output.projection"),
        ),
    )


GPT2 = Style(
    name="mindformers-gpt2",
    entries=(
        one("embed", "backbone.embedding.word_embedding.embedding_table"),
        one("positions", "backbone.embedding.position_embedding.embedding_table"),
        *_block("backbone.blocks.*."),
        *norm("final_norm", "backbone.layernorm", names=_OLD_NORM),
    ),
    words={},
    ignored=(r"backbone\.blocks\.\d+\.attention\.(masked_)?beta",),
)
BLOOM = Style(
    name="mindformers-bloom",
    entries=(
        one("embed", "transformer.embedding.word_embedding.embedding_table"),
        *norm("embed_norm", "transformer.embedding.norm", names=_OLD_NORM),
        *_block("transformer.blocks.*."),
        *norm("final_norm", "transformer.ln_f", names=_OLD_NORM),
        one("head", "head.weight"),
    ),
    words={},
)
