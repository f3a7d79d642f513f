"""Name the tensors of ChatGLM 2 and 3 and of GLM-4 (models/glm2)."""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.dialects.base import Dialect, norm, plain, prefixed, whole
from ckptconv.dialects.mindformers.parts import DOWN, GATE, IN_A_ROW, UP, K, Q, V
from ckptconv.relations import Spec
from ckptconv.slots import (
    Words,
    concat,
    rotary,
)

__all__ = ["GLM"]

_GLM_LAYER = (
    *norm("layers.*.attn_norm", "input_layernorm."),
    *whole(Q, "self_attention.wq", bias=True, when="!qkv_concat !rearranged"),
    *whole(K, "self_attention.wk", bias=True, when="!qkv_concat !rearranged"),
    *whole(rotary("heads", Q), "self_attention.wq", bias=True, when="!qkv_concat rearranged"),
    *whole(rotary("kv_heads", K), "self_attention.wk", bias=True, when="!qkv_concat rearranged"),
    *whole(V, "self_attention.wv", bias=True, when="!qkv_concat"),
    *whole(IN_A_ROW, "self_attention.query_key_value", bias=True, when="qkv_concat !rearranged"),
    *whole(
        concat(rotary("heads", Q), rotary("kv_heads", K), V),
        "self_attention.query_key_value",
        bias=True,
        when="qkv_concat rearranged",
    ),
    *whole("layers.*.attn.o", "self_attention.dense", bias=True),
    *norm("layers.*.mlp_norm", "post_attention_layernorm."),
    *whole(GATE, "mlp.dense_left", bias=True, when="!mlp_concat"),
    *whole(UP, "mlp.dense_right", bias=True, when="!mlp_concat"),
    *whole(concat(GATE, UP), "mlp.dense_h_to_4h", bias=True, when="mlp_concat"),
    *whole(DOWN, "mlp.dense_4h_to_h", bias=True),
)


def _open(tensors: Mapping[str, Spec], words: Words) -> dict[str, bool]:
    return {"rearranged": False}


GLM = Dialect(
    name="mindformers-glm",
    lines=(
        plain("embed", "transformer.embedding.embedding_weight"),
        *prefixed(_GLM_LAYER, "transformer.encoder.layers.*."),
        *norm("final_norm", "transformer.encoder.final_layernorm."),
        plain("head", "transformer.output_layer.weight"),
    ),
    tells={
        "qkv_concat": r".*\.self_attention\.query_key_value\.weight",
        "mlp_concat": r".*\.mlp\.dense_h_to_4h\.weight",
    },
    reads=("rearranged",),
    leaves_open=_open,
    ignored=(r".*\.inv_freq",),
    ranks=False,
)
