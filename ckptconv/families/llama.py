"""Llama 1 to 3.x, and what calls itself ``llama``: Yi, DeepSeek LLM, Code Llama and others."""

from ckptconv.families.base import Family
from ckptconv.families.template import decoder
from ckptconv.slots import Entry, linear, one

EMBED = one("embed", "model.embed_tokens.weight")
NORMS = (
    one("layers.*.attn_norm", "model.layers.*.input_layernorm.weight"),
    one("layers.*.mlp_norm", "model.layers.*.post_attention_layernorm.weight"),
)
ENDS = (one("final_norm", "model.norm.weight"), one("head", "lm_head.weight", when="!tie_word_embeddings"))


def attention(bias: str | bool, o_bias: str | bool) -> tuple[Entry, ...]:
    """Declare query, key, value and output projections of their own."""
    at = "model.layers.*.self_attn"
    return (
        *linear("layers.*.attn.q", f"{at}.q_proj", bias=bias),
        *linear("layers.*.attn.k", f"{at}.k_proj", bias=bias),
        *linear("layers.*.attn.v", f"{at}.v_proj", bias=bias),
        *linear("layers.*.attn.o", f"{at}.o_proj", bias=o_bias),
    )


def gated(
    slots: str,
    module: str,
    names: str = "gate_proj up_proj down_proj",
    *,
    bias: str | bool | None = False,
) -> tuple[Entry, ...]:
    """Declare the projections of a gated MLP: gate, up and down below a slot."""
    parts = zip(("gate", "up", "down"), names.split(), strict=True)
    return tuple(
        entry for part, name in parts for entry in linear(f"{slots}.{part}", f"{module}.{name}", bias=bias)
    )


MLP = gated("layers.*.mlp", "model.layers.*.mlp")
BIASED_MLP = gated("layers.*.mlp", "model.layers.*.mlp", bias="mlp_bias")
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"lm_head\.weight")

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    entries=(EMBED, *attention("attention_bias", "attention_bias"), *NORMS, *BIASED_MLP, *ENDS),
    flags={"tie_word_embeddings": False},
    ignored=IGNORED,
    template=decoder(
        "LlamaForCausalLM",
        {"attention_bias": "qkv_bias o_bias", "mlp_bias": "linear_bias"},
        assumed={"attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-6},
    ),
)
