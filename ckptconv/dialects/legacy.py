"""The model Megatron-LM had before megatron-core (``--use-legacy-models``), also as ModelLink writes it.

Names: Megatron-LM core_v0.16.1, ``megatron/legacy/model/language_model.py`` and ``transformer.py``, which
still read the older ones: ``transformer`` for ``encoder``, ``attention`` for ``self_attention``,
``layernorm`` for ``norm``.
"""

from ckptconv.dialects.base import Line, column, norm, prefixed, row, whole
from ckptconv.dialects.core import megatron
from ckptconv.slots import concat, grouped

_GATE_UP = concat("layers.*.mlp.gate", "layers.*.mlp.up")


def _layer(attention: str, norms: tuple[str, str]) -> tuple[Line, ...]:
    return (
        *norm("layers.*.attn_norm", f"{norms[0]}."),
        *column(
            grouped("kv_heads", "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v"),
            f"{attention}.query_key_value",
        ),
        *row("layers.*.attn.o", f"{attention}.dense"),
        *norm("layers.*.mlp_norm", f"{norms[1]}."),
        *column(
            concat("layers.*.mlp.gate", "layers.*.mlp.up"), "mlp.dense_h_to_4h", parts=2, when="mlp.gate"
        ),
        *column("layers.*.mlp.up", "mlp.dense_h_to_4h", when="!mlp.gate"),
        *row("layers.*.mlp.down", "mlp.dense_4h_to_h"),
        *norm("layers.*.mlp_post_norm", "post_mlp_layernorm."),
    )


_NEW = _layer("self_attention", ("input_norm", "post_attention_norm"))
_MIDDLE = _layer("self_attention", ("input_layernorm", "post_attention_layernorm"))
_OLD = _layer("attention", ("input_layernorm", "post_attention_layernorm"))

LEGACY = megatron(
    "legacy",
    nested=True,
    lines=(
        *column("embed", "language_model.embedding.word_embeddings", bias=False),
        *whole("positions", "language_model.embedding.position_embeddings"),
        *norm("embed_norm", "language_model.embedding.word_embeddings.norm."),
        *prefixed(_NEW, "language_model.encoder.layers.*."),
        *prefixed(_MIDDLE, "language_model.encoder.layers.*."),
        *prefixed(_OLD, "language_model.transformer.layers.*."),
        *norm("final_norm", "language_model.encoder.final_norm."),
        *norm("final_norm", "language_model.encoder.final_layernorm."),
        *norm("final_norm", "language_model.transformer.final_layernorm."),
        *column("head", "language_model.output_layer", bias=False),
        *column("head", "word_embeddings_for_head", bias=False),
    ),
    extra_states=(
        "self_attention.query_key_value",
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        "language_model.output_layer",
    ),
)
