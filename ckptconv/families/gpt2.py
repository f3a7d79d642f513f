"""GPT-2, whose projections are Conv1D: stored input first."""

from ckptconv.families.base import Family
from ckptconv.families.template import Template
from ckptconv.slots import concat, linear, one, transposed

FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    entries=(
        one("embed", "transformer.wte.weight"),
        one("positions", "transformer.wpe.weight"),
        *linear("layers.*.attn_norm", "transformer.h.*.ln_1", bias=True),
        *linear(
            transposed(concat("layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")),
            "transformer.h.*.attn.c_attn",
            bias=True,
        ),
        *linear(transposed("layers.*.attn.o"), "transformer.h.*.attn.c_proj", bias=True),
        *linear("layers.*.mlp_norm", "transformer.h.*.ln_2", bias=True),
        *linear(transposed("layers.*.mlp.up"), "transformer.h.*.mlp.c_fc", bias=True),
        *linear(transposed("layers.*.mlp.down"), "transformer.h.*.mlp.c_proj", bias=True),
        *linear("final_norm", "transformer.ln_f", bias=True),
        one("head", "lm_head.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": True},
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias", r"lm_head\.weight"),
    template=Template(
        "GPT2LMHeadModel",
        {
            "vocab_size": "vocab",
            "n_embd": "hidden",
            "n_layer": "layers",
            "n_head": "heads",
            "n_inner": "inner",
            "n_positions": "positions",
            "activation_function": "activation",
            "layer_norm_epsilon": "norm_eps",
            "tie_word_embeddings": "tied",
        },
        {
            "position": "learned_absolute",
            "norm_kind": "LayerNorm",
            "gated": False,
            "grouped": False,
            "linear_bias": True,
            "qkv_bias": True,
            "o_bias": True,
            "qk_norm": False,
            "window": None,
        },
        assumed={"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    ),
)
