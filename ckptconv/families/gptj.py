"""GPT-J and CodeGen: attention and MLP side by side after one norm; the head has a bias.

CodeGen packs query, value and key in four blocks, one for each core it was trained on (transformers 5.23,
``modeling_codegen.py``).
"""

from ckptconv.families.base import Family
from ckptconv.families.template import Template
from ckptconv.slots import Entry, grouped, linear, one

_AT = "transformer.h.*"
_AROUND = (
    one("embed", "transformer.wte.weight"),
    *linear("layers.*.attn_norm", f"{_AT}.ln_1", bias=True),
    one("layers.*.attn.o", f"{_AT}.attn.out_proj.weight"),
    *linear("layers.*.mlp.up", f"{_AT}.mlp.fc_in", bias=True),
    *linear("layers.*.mlp.down", f"{_AT}.mlp.fc_out", bias=True),
    *linear("final_norm", "transformer.ln_f", bias=True),
    one("head", "lm_head.weight", when="!tie_word_embeddings"),
    one("head.bias", "lm_head.bias"),
)
_KEYS = {
    "vocab_size": "vocab",
    "n_embd": "hidden",
    "n_layer": "layers",
    "n_head": "heads",
    "n_positions": "positions",
    "activation_function": "activation",
    "layer_norm_epsilon": "norm_eps",
    "tie_word_embeddings": "tied",
}
_FIXED = {"position": "rope", "norm_kind": "LayerNorm", "gated": False, "linear_bias": True, "grouped": False}
_ASSUMED = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False}


def _family(name: str, architecture: str, *attention: Entry) -> Family:
    return Family(
        name=name,
        model_types=(name,),
        entries=(*_AROUND, *attention),
        flags={"tie_word_embeddings": False},
        ignored=(
            r"transformer\.h\.\d+\.attn\.(masked_)?(bias|causal_mask|embed_positions)",
            r"lm_head\.weight",
        ),
        template=Template(architecture, _KEYS, _FIXED, assumed=_ASSUMED, carried=True, by_name=True),
    )


GPTJ = _family(
    "gptj", "GPTJForCausalLM", *(one(f"layers.*.attn.{p}", f"{_AT}.attn.{p}_proj.weight") for p in "qkv")
)
CODEGEN = _family(
    "codegen",
    "CodeGenForCausalLM",
    one(grouped("4", "layers.*.attn.q", "layers.*.attn.v", "layers.*.attn.k"), f"{_AT}.attn.qkv_proj.weight"),
)
