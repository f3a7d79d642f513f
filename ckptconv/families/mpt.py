"""MPT (alibi, no biases) and DBRX: query, key and value one after the other.

DBRX's experts lie one below the other, their down projection transposed (transformers 5.23,
``modeling_dbrx.py``).
"""

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.template import Template
from ckptconv.slots import concat, one, rows, stacked, transposed

_AT, _E = "transformer.blocks.*", "layers.*.moe.experts.{e}"
QKV = concat("layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")
_KEYS = {
    "vocab_size": "vocab",
    "d_model": "hidden",
    "n_layers": "layers",
    "n_heads": "heads",
    "max_seq_len": "positions",
    "tie_word_embeddings": "tied",
}
_ENDS = (
    one("embed", "transformer.wte.weight"),
    one("final_norm", "transformer.norm_f.weight"),
    one("head", "lm_head.weight", when="!tie_word_embeddings"),
)
MPT = Family(
    name="mpt",
    model_types=("mpt",),
    entries=(
        *_ENDS,
        one("layers.*.attn_norm", f"{_AT}.norm_1.weight"),
        one(QKV, f"{_AT}.attn.Wqkv.weight"),
        one("layers.*.attn.o", f"{_AT}.attn.out_proj.weight"),
        one("layers.*.mlp_norm", f"{_AT}.norm_2.weight"),
        one("layers.*.mlp.up", f"{_AT}.ffn.up_proj.weight"),
        one("layers.*.mlp.down", f"{_AT}.ffn.down_proj.weight"),
    ),
    flags={"tie_word_embeddings": True},
    ignored=(r"lm_head\.weight",),
    sizes=lambda config: {"inner": (config.get("expansion_ratio") or 4) * dims(config).get("hidden", 0)},
    template=Template(
        "MptForCausalLM",
        {**_KEYS, "layer_norm_epsilon": "norm_eps"},
        {"position": "alibi", "norm_kind": "LayerNorm", "activation": "gelu", "gated": False},
        assumed={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        carried=True,
        by_name=True,
    ),
)


def _sizes(config: Config) -> dict[str, int]:
    attention, experts = config.get("attn_config") or {}, config.get("ffn_config") or {}
    inner = experts.get("ffn_hidden_size") or 0
    found = {"inner": inner, "expert_inner": inner, "experts": experts.get("moe_num_experts") or 0}
    return {**found, "kv_heads": attention.get("kv_n_heads") or dims(config).get("heads", 0)}


_NORM, _X = f"{_AT}.norm_attn_norm", f"{_AT}.ffn.experts.mlp"
DBRX = Family(
    name="dbrx",
    model_types=("dbrx",),
    entries=(
        *_ENDS,
        one("layers.*.attn_norm", f"{_NORM}.norm_1.weight"),
        one(QKV, f"{_NORM}.attn.Wqkv.weight"),
        one("layers.*.attn.o", f"{_NORM}.attn.out_proj.weight"),
        one("layers.*.mlp_norm", f"{_NORM}.norm_2.weight"),
        one("layers.*.moe.router", f"{_AT}.ffn.router.layer.weight"),
        one(rows(stacked(f"{_E}.gate")), f"{_X}.w1"),
        one(rows(stacked(f"{_E}.up")), f"{_X}.v1"),
        one(rows(stacked(transposed(f"{_E}.down"))), f"{_X}.w2"),
    ),
    flags={"tie_word_embeddings": False},
    ignored=(r"lm_head\.weight",),
    sizes=_sizes,
    kinds=lambda config: ["attn moe"] * dims(config).get("layers", 0),
    template=Template(
        "DbrxForCausalLM",
        _KEYS,
        {"position": "rope", "norm_kind": "LayerNorm", "norm_eps": 1e-5, "activation": "silu", "gated": True},
        assumed={"tie_word_embeddings": False},
        carried=True,
        by_name=True,
    ),
)
