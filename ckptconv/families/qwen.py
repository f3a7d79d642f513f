"""Qwen2, Qwen2.5 (query, key and value biases) and Qwen3 (query and key norms)."""

from ckptconv.families.base import Family
from ckptconv.families.llama import EMBED, ENDS, IGNORED, MLP, NORMS, attention
from ckptconv.families.template import decoder
from ckptconv.slots import one

QK_NORMS = (
    one("layers.*.attn.q_norm", "model.layers.*.self_attn.q_norm.weight"),
    one("layers.*.attn.k_norm", "model.layers.*.self_attn.k_norm.weight"),
)
_WINDOW = {"sliding_window": "window", "use_sliding_window": "has_window", "max_window_layers": "full_layers"}
_ASSUMED = {"sliding_window": None, "use_sliding_window": False, "rms_norm_eps": 1e-6}
QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    entries=(EMBED, *attention(True, False), *NORMS, *MLP, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "Qwen2ForCausalLM", _WINDOW, without=("head_dim",), fixed={"qkv_bias": True}, assumed=_ASSUMED
    ),
)
QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    entries=(EMBED, *attention("attention_bias", "attention_bias"), *QK_NORMS, *NORMS, *MLP, *ENDS),
    flags={"tie_word_embeddings": False, "head_dim": 128},
    ignored=IGNORED,
    template=decoder(
        "Qwen3ForCausalLM",
        {"attention_bias": "qkv_bias o_bias", **_WINDOW},
        fixed={"qk_norm": True},
        assumed={**_ASSUMED, "attention_bias": False, "head_dim": 128},
    ),
)
