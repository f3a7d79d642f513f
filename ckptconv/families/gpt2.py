"""GPT-2, whose projections are Conv1D: stored input first."""

from ckptconv.families.base import Family, one

FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    slots=(
        one("embed", "transformer.wte.weight", "vocab", "hidden"),
        one("positions", "transformer.wpe.weight", "positions", "hidden"),
        one("layers.*.attn_norm", "transformer.h.*.ln_1.weight", "hidden"),
        one("layers.*.attn_norm.bias", "transformer.h.*.ln_1.bias", "hidden"),
        one("layers.*.attn.qkv", "transformer.h.*.attn.c_attn.weight", "hidden", "3*hidden"),
        one("layers.*.attn.qkv.bias", "transformer.h.*.attn.c_attn.bias", "3*hidden"),
        one("layers.*.attn.o", "transformer.h.*.attn.c_proj.weight", "hidden", "hidden"),
        one("layers.*.attn.o.bias", "transformer.h.*.attn.c_proj.bias", "hidden"),
        one("layers.*.mlp_norm", "transformer.h.*.ln_2.weight", "hidden"),
        one("layers.*.mlp_norm.bias", "transformer.h.*.ln_2.bias", "hidden"),
        one("layers.*.mlp.up", "transformer.h.*.mlp.c_fc.weight", "hidden", "inner"),
        one("layers.*.mlp.up.bias", "transformer.h.*.mlp.c_fc.bias", "inner"),
        one("layers.*.mlp.down", "transformer.h.*.mlp.c_proj.weight", "inner", "hidden"),
        one("layers.*.mlp.down.bias", "transformer.h.*.mlp.c_proj.bias", "hidden"),
        one("final_norm", "transformer.ln_f.weight", "hidden"),
        one("final_norm.bias", "transformer.ln_f.bias", "hidden"),
        one("head", "lm_head.weight", "vocab", "hidden", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True},
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias", r"lm_head\.weight"),
)
