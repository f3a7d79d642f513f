"""Llama 1 to 3.x, and Mistral, which stores the same tensors."""

from ckptconv.families.base import Family, one

FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral"),
    slots=(
        one("embed", "model.embed_tokens.weight", "vocab", "hidden"),
        one("layers.*.attn_norm", "model.layers.*.input_layernorm.weight", "hidden"),
        one("layers.*.attn.q", "model.layers.*.self_attn.q_proj.weight", "heads*head_dim", "hidden"),
        one("layers.*.attn.k", "model.layers.*.self_attn.k_proj.weight", "kv_heads*head_dim", "hidden"),
        one("layers.*.attn.v", "model.layers.*.self_attn.v_proj.weight", "kv_heads*head_dim", "hidden"),
        one("layers.*.attn.o", "model.layers.*.self_attn.o_proj.weight", "hidden", "heads*head_dim"),
        one(
            "layers.*.attn.q.bias",
            "model.layers.*.self_attn.q_proj.bias",
            "heads*head_dim",
            when="attention_bias",
        ),
        one(
            "layers.*.attn.k.bias",
            "model.layers.*.self_attn.k_proj.bias",
            "kv_heads*head_dim",
            when="attention_bias",
        ),
        one(
            "layers.*.attn.v.bias",
            "model.layers.*.self_attn.v_proj.bias",
            "kv_heads*head_dim",
            when="attention_bias",
        ),
        one("layers.*.attn.o.bias", "model.layers.*.self_attn.o_proj.bias", "hidden", when="attention_bias"),
        one("layers.*.mlp_norm", "model.layers.*.post_attention_layernorm.weight", "hidden"),
        one("layers.*.mlp.gate", "model.layers.*.mlp.gate_proj.weight", "inner", "hidden"),
        one("layers.*.mlp.up", "model.layers.*.mlp.up_proj.weight", "inner", "hidden"),
        one("layers.*.mlp.down", "model.layers.*.mlp.down_proj.weight", "hidden", "inner"),
        one("layers.*.mlp.gate.bias", "model.layers.*.mlp.gate_proj.bias", "inner", when="mlp_bias"),
        one("layers.*.mlp.up.bias", "model.layers.*.mlp.up_proj.bias", "inner", when="mlp_bias"),
        one("layers.*.mlp.down.bias", "model.layers.*.mlp.down_proj.bias", "hidden", when="mlp_bias"),
        one("final_norm", "model.norm.weight", "hidden"),
        one("head", "lm_head.weight", "vocab", "hidden", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": False},
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"lm_head\.weight"),
)
