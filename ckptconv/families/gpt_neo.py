"""GPT-Neo (windows on every second layer) and GPT-BigCode (one key and value for all heads).

transformers 5.23, ``modeling_gpt_neo.py``, ``modeling_gpt_bigcode.py``.
"""

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.template import Template
from ckptconv.slots import grouped, linear, one

_AT = "transformer.h.*"
_AROUND = (
    one("embed", "transformer.wte.weight"),
    one("positions", "transformer.wpe.weight"),
    *linear("layers.*.attn_norm", f"{_AT}.ln_1", bias=True),
    *linear("layers.*.mlp_norm", f"{_AT}.ln_2", bias=True),
    *linear("layers.*.mlp.up", f"{_AT}.mlp.c_fc", bias=True),
    *linear("layers.*.mlp.down", f"{_AT}.mlp.c_proj", bias=True),
    *linear("final_norm", "transformer.ln_f", bias=True),
    one("head", "lm_head.weight", when="!tie_word_embeddings"),
)
_KEYS = {
    "vocab_size": "vocab",
    "activation_function": "activation",
    "layer_norm_epsilon": "norm_eps",
    "tie_word_embeddings": "tied",
}
_FIXED = {"position": "learned_absolute", "norm_kind": "LayerNorm", "gated": False, "linear_bias": True}
_ASSUMED = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
_IGNORED = (r"transformer\.h\.\d+\.attn\.(attention\.)?(masked_)?bias", r"lm_head\.weight")
NEO = Family(
    name="gpt_neo",
    model_types=("gpt_neo",),
    entries=(
        *_AROUND,
        *(one(f"layers.*.attn.{p}", f"{_AT}.attn.attention.{p}_proj.weight") for p in "qkv"),
        *linear("layers.*.attn.o", f"{_AT}.attn.attention.out_proj", bias=True),
    ),
    flags={"tie_word_embeddings": True},
    ignored=_IGNORED,
    template=Template(
        "GPTNeoForCausalLM",
        {**_KEYS, "hidden_size": "hidden", "num_layers": "layers", "num_heads": "heads"},
        _FIXED,
        assumed=_ASSUMED,
        carried=True,
        by_name=True,
    ),
)


def _sizes(config: Config) -> dict[str, int]:
    return {"kv_heads": 1 if config.get("multi_query", True) else dims(config).get("heads", 0)}


BIGCODE = Family(
    name="gpt_bigcode",
    model_types=("gpt_bigcode",),
    entries=(
        *_AROUND,
        *linear(
            grouped("kv_heads", "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v"),
            f"{_AT}.attn.c_attn",
            bias=True,
        ),
        *linear("layers.*.attn.o", f"{_AT}.attn.c_proj", bias=True),
    ),
    flags={"tie_word_embeddings": True},
    ignored=_IGNORED,
    sizes=_sizes,
    template=Template(
        "GPTBigCodeForCausalLM",
        {**_KEYS, "n_embd": "hidden", "n_layer": "layers", "n_head": "heads", "n_positions": "positions"},
        _FIXED,
        assumed=_ASSUMED,
        carried=True,
        by_name=True,
    ),
)
