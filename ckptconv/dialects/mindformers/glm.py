"""Name the tensors of ChatGLM 2 and 3 and of GLM-4 (models/glm2)."""

from __future__ import annotations

from ckptconv.dialects.mindformers.style import (
    DOWN,
    GATE,
    IN_A_ROW,
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
    concat,
    one,
    rotary,
)

__all__ = ["GLM"]

_GLM_LAYER = (
    *norm("layers.*.attn_norm", "input_layernorm"),
    *lines(Q, "self_attention.wq", "!qkv_concat !rearranged"),
    *lines(K, "self_attention.wk", "!qkv_concat !rearranged"),
    *lines(rotary("heads", Q), "self_attention.wq", "!qkv_concat rearranged"),
    *lines(rotary("kv_heads", K), "self_attention.wk", "!qkv_concat rearranged"),
    *lines(V, "self_attention.wv", "!qkv_concat"),
    *lines(IN_A_ROW, "self_attention.query_key_value", "qkv_concat !rearranged"),
    *lines(
        concat(rotary("heads", Q), rotary("kv_heads", K), V),
        "self_attention.query_key_value",
        "qkv_concat rearranged",
    ),
    *lines("layers.*.attn.o", "self_attention.dense"),
    *norm("layers.*.mlp_norm", "post_attention_layernorm"),
    *lines(GATE, "mlp.dense_left", "!mlp_concat"),
    *lines(UP, "mlp.dense_right", "!mlp_concat"),
    *lines(concat(GATE, UP), "mlp.dense_h_to_4h", "mlp_concat"),
    *lines(DOWN, "mlp.dense_4h_to_h"),
)
GLM = Style(
    name="mindformers-glm",
    entries=(
        one("embed", "transformer.embedding.embedding_weight"),
        *under("transformer.encoder.layers.*.", _GLM_LAYER),
        *norm("final_norm", "transformer.encoder.final_layernorm"),
        one("head", "transformer.output_layer.weight"),
    ),
    words={
        "qkv_concat": r".*\.self_attention\.query_key_value\.weight",
        "mlp_concat": r".*\.mlp\.dense_h_to_4h\.weight",
    },
)
