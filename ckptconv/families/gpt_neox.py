"""GPT-NeoX and Pythia: query, key and value of each head together, attention and MLP side by side."""

from ckptconv.families.base import Config, Family, dims
from ckptconv.families.template import decoder
from ckptconv.slots import grouped, linear, one

_AT = "gpt_neox.layers.*"
QKV = grouped("heads", "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v")


def ungrouped(config: Config) -> dict[str, int]:
    """Return that each head has a key and a value of its own, whatever else a config says."""
    sizes = dims(config)
    return {"kv_heads": sizes["heads"]} if "heads" in sizes else {}


FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    entries=(
        one("embed", "gpt_neox.embed_in.weight"),
        *linear("layers.*.attn_norm", f"{_AT}.input_layernorm", bias=True),
        *linear(QKV, f"{_AT}.attention.query_key_value", bias="attention_bias"),
        *linear("layers.*.attn.o", f"{_AT}.attention.dense", bias="attention_bias"),
        *linear("layers.*.mlp_norm", f"{_AT}.post_attention_layernorm", bias=True),
        *linear("layers.*.mlp.up", f"{_AT}.mlp.dense_h_to_4h", bias=True),
        *linear("layers.*.mlp.down", f"{_AT}.mlp.dense_4h_to_h", bias=True),
        *linear("final_norm", "gpt_neox.final_layer_norm", bias=True),
        one("head", "embed_out.weight", when="!tie_word_embeddings"),
    ),
    flags={"tie_word_embeddings": False, "attention_bias": True},
    ignored=(
        r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        r"embed_out\.weight",
    ),
    sizes=ungrouped,
    beyond=lambda config: (
        ["attention and MLP side by side (use_parallel_residual)"]
        if config.get("use_parallel_residual", True)
        else []
    ),
    template=decoder(
        "GPTNeoXForCausalLM",
        {
            "attention_bias": "qkv_bias o_bias",
            "layer_norm_eps": "norm_eps",
            "rotary_emb_base": "rope_theta?",
            "rotary_pct": "partial_rotary?",
        },
        without=("rms_norm_eps", "head_dim", "num_key_value_heads", "rope_theta", "rope_scaling"),
        fixed={"norm_kind": "LayerNorm", "gated": False, "linear_bias": True, "grouped": False},
        assumed={
            "attention_bias": True,
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
        },
        by_name=True,
    ),
)
